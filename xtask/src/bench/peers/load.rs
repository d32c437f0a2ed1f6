//! Bulk traffic: iperf3 from the client to the server, or back.

use std::{
    io::Read,
    net::IpAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{netns::Netns, wait_for};

const PORT: &str = "5201";
/// Of the streams measured: Linux's default. Hosts have others set, and figures differ by it.
const CONGESTION_CONTROL: &str = "cubic";
/// How long the server may take until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take beside the time it was told to send.
const OVERTIME: Duration = Duration::from_secs(15);

/// What congestion controls there are: of the streams, and of tunnels that are TCP connections themselves, which go by the
/// host's default.
pub(super) fn congestion_control() -> String {
    let host = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    let host = host.as_deref().map_or("unknown", str::trim);
    format!("{CONGESTION_CONTROL}; the host's default: {host}")
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// TCP, so many streams, from the client or back.
    Tcp {
        /// Streams.
        streams: u32,
        /// From the server to the client.
        back: bool,
    },
    /// UDP as fast as it goes, so many bytes in a datagram.
    Udp {
        /// Bytes of payload.
        payload: u32,
    },
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Flow {
    /// Gigabits per second of payload at the receiver.
    pub(crate) gbps: f64,
    /// Bytes of payload the receiver got.
    pub(crate) bytes: f64,
    /// How long, seconds.
    pub(crate) seconds: f64,
    /// Segments sent again (TCP).
    pub(crate) retransmits: u64,
    /// Datagrams received, thousands per second (UDP).
    pub(crate) kpps: f64,
    /// Share of datagrams lost (UDP).
    pub(crate) lost: f64,
    /// CPU seconds of iperf3 itself, both ends.
    pub(crate) own_cpu: f64,
}

struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It ends by itself after one client; this is for when there was none.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs it for some seconds.
///
/// # Errors
/// When iperf3 fails, with what it says.
pub(crate) fn run(
    client: &Netns,
    server: &Netns,
    target: IpAddr,
    traffic: Traffic,
    seconds: u32,
) -> Result<Flow> {
    let address = target.to_string();
    let mut serve = server.command("iperf3");
    serve.args(["--server", "--one-off", "--port", PORT]);
    serve
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut served = Served(serve.spawn().context("cannot start iperf3")?);
    let mut ask = client.command("iperf3");
    ask.args(["--client", &address, "--port", PORT, "--json"]);
    ask.args(["--time", &seconds.to_string(), "--connect-timeout", "5000"]);
    match traffic {
        Traffic::Tcp { streams, back } => {
            ask.args(["--parallel", &streams.to_string()]);
            ask.args(["--congestion", CONGESTION_CONTROL]);
            if back {
                ask.arg("--reverse");
            }
        }
        Traffic::Udp { payload } => {
            ask.args(["--udp", "--bitrate", "0", "--length", &payload.to_string()]);
        }
    }
    // The server may not listen yet when the client asks first.
    wait_for("iperf3's server to listen", LISTEN_LIMIT, || {
        let report = bounded(&mut ask, Duration::from_secs(seconds.into()) + OVERTIME)?;
        let refused = report
            .get("error")
            .and_then(Value::as_str)
            .is_some_and(|e| e.contains("unable to connect"));
        if refused && served.0.try_wait()?.is_none() {
            return Ok(None);
        }
        parse(&report, traffic).map(Some)
    })
}

/// Runs the client and reads its report; it is ended when it takes longer than `limit`, as it may where its first
/// datagrams are lost.
fn bounded(ask: &mut Command, limit: Duration) -> Result<Value> {
    let mut client = Served(
        ask.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start iperf3")?,
    );
    let mut output = client.0.stdout.take().context("iperf3 has no output")?;
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    });
    let ended = wait_for("iperf3 to end", limit, || Ok(client.0.try_wait()?));
    drop(client);
    let text = reading
        .join()
        .ok()
        .context("the thread that reads iperf3's output ended unexpectedly")??;
    ended?;
    serde_json::from_str(&text).context("iperf3 wrote no JSON")
}

/// Reads iperf3's report.
fn parse(report: &Value, traffic: Traffic) -> Result<Flow> {
    if let Some(error) = report.get("error").and_then(Value::as_str) {
        bail!("iperf3: {error}");
    }
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    let wanted =
        |pointer: &str| number(pointer).with_context(|| format!("iperf3's JSON has no {pointer}"));
    let seconds = wanted("/end/sum_received/seconds")?;
    let own_cpu = ["host_total", "remote_total"]
        .iter()
        .filter_map(|end| number(&format!("/end/cpu_utilization_percent/{end}")))
        .sum::<f64>()
        / 100.0
        * seconds;
    let mut flow = Flow {
        gbps: wanted("/end/sum_received/bits_per_second")? / 1e9,
        bytes: wanted("/end/sum_received/bytes")?,
        seconds,
        retransmits: number("/end/sum_sent/retransmits").unwrap_or(0.0) as u64,
        own_cpu,
        ..Flow::default()
    };
    if let Traffic::Udp { payload } = traffic {
        flow.kpps = flow.bytes / f64::from(payload) / seconds.max(1e-9) / 1e3;
        flow.lost = number("/end/sum_received/lost_percent").unwrap_or(0.0) / 100.0;
    }
    Ok(flow)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reports_are_read() {
        let report = json!({ "end": {
            "sum_sent": { "retransmits": 7, "bytes": 3000 },
            "sum_received": { "seconds": 2.0, "bytes": 2_000_000, "bits_per_second": 8e6, "lost_percent": 25.0 },
            "cpu_utilization_percent": { "host_total": 50.0, "remote_total": 25.0 },
        }});
        let tcp = Traffic::Tcp {
            streams: 1,
            back: false,
        };
        let flow = parse(&report, tcp).unwrap();
        assert_eq!((flow.gbps, flow.retransmits, flow.own_cpu), (0.008, 7, 1.5));
        let flow = parse(&report, Traffic::Udp { payload: 500 }).unwrap();
        assert_eq!((flow.kpps, flow.lost), (2.0, 0.25));
    }

    #[test]
    fn what_is_missing_is_named() {
        let tcp = Traffic::Tcp {
            streams: 1,
            back: false,
        };
        let error = parse(&json!({ "end": {} }), tcp).unwrap_err().to_string();
        assert!(error.contains("sum_received"), "{error}");
        let error = parse(&json!({ "error": "no route" }), tcp)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no route"), "{error}");
    }
}
