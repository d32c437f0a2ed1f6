//! Encoding and decoding of control messages.
