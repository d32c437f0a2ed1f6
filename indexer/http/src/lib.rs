//! The Esplora interface over HTTP, and a stream of what changes over SSE and WebSocket.
//!
//! What is asked ([`route`]), what is answered ([`answer`]) and what a stream tells ([`stream`])
//! are written without sockets; [`server`] is the shell of axum and hyper around them.

pub mod answer;
mod block_json;
mod coins;
mod merkle_block;
pub mod route;
pub mod server;
pub mod stream;
mod tx_json;

pub use server::{Counters, Server, Settings};

/// The interface, described by OpenAPI; a test holds it to [`route::ROUTES`].
pub const OPENAPI: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    /// The description has every path with its method and parameters, and no other.
    #[test]
    fn the_description_is_of_these_routes() {
        let doc: Value = serde_json::from_str(super::OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in doc["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                described.insert((method.as_str(), path.as_str()));
                let named: BTreeSet<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|p| p["in"] == "path")
                    .map(|p| p["name"].as_str().unwrap())
                    .collect();
                let in_path: BTreeSet<&str> = path
                    .split('/')
                    .filter_map(|p| p.strip_prefix('{')?.strip_suffix('}'))
                    .collect();
                assert_eq!(named, in_path, "{path}");
                assert!(operation["summary"].is_string() && operation["responses"].is_object());
            }
        }
        let routes: BTreeSet<(&str, &str)> = super::route::ROUTES.iter().copied().collect();
        assert_eq!(described, routes);
        // Every schema that is named is there.
        let text = super::OPENAPI;
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(doc["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
