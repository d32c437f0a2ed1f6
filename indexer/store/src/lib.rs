//! The coin index database.
