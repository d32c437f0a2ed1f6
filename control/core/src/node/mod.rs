//! One node: all state machines composed.

/// Something worth a log line.
#[derive(Clone, Debug)]
pub enum Event {}

/// The composition.
#[derive(Debug)]
pub struct Node {}
