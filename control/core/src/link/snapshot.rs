//! Links in a snapshot.
