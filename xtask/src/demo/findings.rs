//! What the demo saw, for programs.

use serde::Serialize;

/// Written by `--json`; null is what was not reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    /// Hops of the path that the trace went, the server included.
    pub path_hops: Option<u64>,
    /// Whether the download had the hash that its seed gives.
    pub download_sha256_ok: Option<bool>,
    /// Labelled packets that the transits' XDP programs sent on, over the whole demo.
    pub xdp_forwarded_packets: Option<u64>,
    /// Labelled packets that the transits' `weftd` sent on, over the whole demo.
    pub daemon_forwarded_packets: Option<u64>,
    /// Whether the known plaintext was in the capture at the transit.
    pub plaintext_seen_at_transit: Option<bool>,
    /// Whether it was in the capture at the server's TUN interface.
    pub plaintext_seen_at_server: Option<bool>,
    /// The longest silence, in either direction, of a packet stream across the cut; milliseconds.
    pub outage_ms: Option<f64>,
    /// TCP from client to server, gigabits per second.
    pub iperf_gbps_up: Option<f64>,
    /// TCP from server to client, gigabits per second.
    pub iperf_gbps_down: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_promised_ones() {
        let json = serde_json::to_value(Findings::default()).unwrap();
        let mut names = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "daemon_forwarded_packets",
                "download_sha256_ok",
                "iperf_gbps_down",
                "iperf_gbps_up",
                "outage_ms",
                "path_hops",
                "plaintext_seen_at_server",
                "plaintext_seen_at_transit",
                "xdp_forwarded_packets",
            ]
        );
    }
}
