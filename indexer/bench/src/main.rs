//! Measures the coin index.
mod generate;

fn main() -> anyhow::Result<()> {
    let mut last = 0;
    let started = std::time::Instant::now();
    let d = generate::generate(std::path::Path::new(&std::env::args().nth(1).unwrap()), std::env::args().nth(2).unwrap().parse()?, 1, |n| {
        if n - last > 100_000_000 {
            last = n;
            eprintln!("{} MB", n / 1_000_000);
        }
    })?;
    println!("{d:#?} {:?}", started.elapsed());
    Ok(())
}
