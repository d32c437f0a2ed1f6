//! d
fn main(){}
