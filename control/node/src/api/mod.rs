//! The local API's server: newline-delimited JSON on a Unix socket (see [`weft_client::api`]).
//!
//! Everything a client can make this process hold is bounded: connections, line length, requests in flight, answers
//! waiting to be read. A client that does not read is dropped.

pub mod answer;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream as StdStream,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc},
    time::{Instant, timeout},
};
use weft_client::api::{self, Call, MAX_LINE, Pong, Request, Response};

/// Requests of one client that run at the same time.
const IN_FLIGHT: usize = 32;
/// Lines that wait to be written to one client.
const UNREAD: usize = 256;
/// How long a client may take to read a line.
const SLOW: Duration = Duration::from_secs(10);
/// How long the control loop may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Echoes and traces: how long to wait for one answer.
const ECHO_PATIENCE: Duration = Duration::from_secs(10);
/// Largest number of echoes of one call.
const MAX_COUNT: u32 = 1_000_000;

/// One partial or final answer of the control loop.
#[derive(Debug)]
pub struct Reply {
    /// The value, or what was wrong.
    pub result: Result<Value, String>,
    /// Whether no other follows.
    pub last: bool,
}

/// A call on its way to the control loop. The receiver of a reply that does not keep up loses the call.
#[derive(Debug)]
pub struct Ask {
    /// The call.
    pub call: Call,
    /// Where answers go.
    pub reply: mpsc::Sender<Reply>,
}

/// Opens the socket, mode 0660. A socket nobody listens on any more is replaced; one that is in use is an error.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if StdStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another weftd listens there",
                ));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is no socket is in the way",
            ));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves clients until the listener's task is dropped.
pub async fn serve(listener: UnixListener, clients: usize, asks: mpsc::Sender<Ask>) {
    let room = Arc::new(Semaphore::new(clients));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    tracing::warn!(
                        clients,
                        "an API client was turned away: too many are connected"
                    );
                    let problem = format!(
                        "weftd serves {clients} clients at once and no more ([limits] api_clients); end one, or try again"
                    );
                    if let Err(error) = turn_away(stream, problem) {
                        tracing::debug!(%error, "telling an API client so");
                    }
                    continue;
                };
                let asks = asks.clone();
                tokio::spawn(async move {
                    client(stream, asks).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "accepting an API client failed");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// There is no request yet to answer: it is told under number 0. What a fresh socket does not take at once is dropped.
fn turn_away(stream: UnixStream, problem: String) -> io::Result<()> {
    let mut line = serde_json::to_vec(&error(0, problem))?;
    line.push(b'\n');
    stream.into_std()?.write_all(&line)
}

async fn client(stream: UnixStream, asks: mpsc::Sender<Ask>) {
    let (read, write) = stream.into_split();
    let (lines, waiting) = mpsc::channel(UNREAD);
    let writer = tokio::spawn(write_lines(write, waiting));
    let mut read = BufReader::new(read);
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut calls = tokio::task::JoinSet::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let whole = (&mut read)
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .await;
        while calls.try_join_next().is_some() {}
        match whole {
            Ok(0) | Err(_) => break,
            Ok(_) if line.last() != Some(&b'\n') => {
                let problem = if line.len() > MAX_LINE {
                    format!("the line is longer than {MAX_LINE} bytes")
                } else {
                    "the last line has no newline".to_owned()
                };
                let _ = lines.send(error(0, problem)).await;
                break;
            }
            Ok(_) => {}
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let request = match parse(&line) {
            Ok(request) => request,
            Err((id, problem)) => {
                if lines.send(error(id, problem)).await.is_err() {
                    break;
                }
                continue;
            }
        };
        let Ok(permit) = in_flight.clone().try_acquire_owned() else {
            let problem = format!(
                "{IN_FLIGHT} requests of this connection are under way; wait for one of them"
            );
            if lines.send(error(request.id, problem)).await.is_err() {
                break;
            }
            continue;
        };
        let (asks, lines) = (asks.clone(), lines.clone());
        calls.spawn(async move {
            answer_request(request, &asks, &lines).await;
            drop(permit);
        });
    }
    // What is under way may still be answered where the client closed only its side for writing.
    let _ = timeout(PATIENCE, async {
        while calls.join_next().await.is_some() {}
    })
    .await;
    calls.abort_all();
    drop(lines);
    let _ = writer.await;
}

/// Reads one line. The error holds the id, as far as there is one, and what is wrong.
pub fn parse(line: &[u8]) -> Result<Request, (u64, String)> {
    serde_json::from_slice::<Request>(line).map_err(|problem| {
        let id = serde_json::from_slice::<Value>(line)
            .ok()
            .and_then(|value| value.get("id")?.as_u64());
        (id.unwrap_or(0), format!("this is no request: {problem}"))
    })
}

fn error(id: u64, problem: String) -> Response {
    Response {
        id,
        last: true,
        result: api::Result::Error(problem),
    }
}

async fn write_lines(mut write: OwnedWriteHalf, mut waiting: mpsc::Receiver<Response>) {
    while let Some(response) = waiting.recv().await {
        let mut line = match serde_json::to_vec(&response) {
            Ok(line) if line.len() <= MAX_LINE => line,
            Ok(line) => {
                let problem = format!(
                    "the answer has {} bytes, over the limit of {MAX_LINE}",
                    line.len()
                );
                serde_json::to_vec(&error(response.id, problem)).unwrap_or_default()
            }
            Err(problem) => {
                serde_json::to_vec(&error(response.id, problem.to_string())).unwrap_or_default()
            }
        };
        line.push(b'\n');
        match timeout(SLOW, write.write_all(&line)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                tracing::warn!("an API client does not read its answers; it is dropped");
                return;
            }
        }
    }
}

async fn answer_request(
    request: Request,
    asks: &mpsc::Sender<Ask>,
    lines: &mpsc::Sender<Response>,
) {
    let id = request.id;
    match request.call {
        Call::Ping {
            node,
            count,
            interval_ms,
            payload_len,
        } => {
            ping(id, node, count, interval_ms, payload_len, asks, lines).await;
        }
        call => {
            let wait = if matches!(call, Call::Trace { .. }) {
                ECHO_PATIENCE
            } else {
                PATIENCE
            };
            let (reply, mut replies) = mpsc::channel(64);
            if asks.send(Ask { call, reply }).await.is_err() {
                let _ = lines.send(error(id, "weftd is ending".to_owned())).await;
                return;
            }
            loop {
                let (result, last) = match timeout(wait, replies.recv()).await {
                    Ok(Some(reply)) => (reply.result, reply.last),
                    Ok(None) => (
                        Err("weftd gave no answer; it is ending, or busy".to_owned()),
                        true,
                    ),
                    Err(_) => (Err("no answer in time".to_owned()), true),
                };
                let result = match result {
                    Ok(value) => api::Result::Ok(value),
                    Err(problem) => api::Result::Error(problem),
                };
                if lines.send(Response { id, last, result }).await.is_err() || last {
                    return;
                }
            }
        }
    }
}

async fn ping(
    id: u64,
    node: String,
    count: u32,
    interval_ms: u32,
    payload_len: u16,
    asks: &mpsc::Sender<Ask>,
    lines: &mpsc::Sender<Response>,
) {
    if count == 0 || count > MAX_COUNT {
        let _ = lines
            .send(error(
                id,
                format!("count {count} is out of range; use 1 to {MAX_COUNT}"),
            ))
            .await;
        return;
    }
    let interval = Duration::from_millis(u64::from(interval_ms.max(1)));
    for sequence in 1..=count {
        let next = Instant::now() + interval;
        let (reply, mut replies) = mpsc::channel(1);
        let call = Call::Ping {
            node: node.clone(),
            count: 1,
            interval_ms,
            payload_len,
        };
        let result = if asks.send(Ask { call, reply }).await.is_ok() {
            match timeout(ECHO_PATIENCE, replies.recv()).await {
                Ok(Some(reply)) => reply.result,
                Ok(None) => Err("weftd is ending".to_owned()),
                Err(_) => Ok(pong(None, 0, Some("no answer in time".to_owned()))),
            }
        } else {
            Err("weftd is ending".to_owned())
        };
        let last = sequence == count;
        let response = match result {
            Ok(mut value) => {
                if let Some(object) = value.as_object_mut() {
                    object.insert("sequence".to_owned(), sequence.into());
                }
                Response {
                    id,
                    last,
                    result: api::Result::Ok(value),
                }
            }
            // The call itself is wrong (no such node): the next echo would fail as well.
            Err(problem) => error(id, problem),
        };
        let over = response.last;
        if lines.send(response).await.is_err() || over {
            return;
        }
        tokio::time::sleep_until(next).await;
    }
}

/// The value of one echo.
pub fn pong(rtt_ms: Option<f64>, hops: u8, error: Option<String>) -> Value {
    serde_json::to_value(Pong {
        sequence: 0,
        rtt_ms,
        hops,
        error,
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::Scratch;

    async fn served(
        asks: mpsc::Sender<Ask>,
        clients: usize,
        name: &str,
    ) -> (Scratch, std::path::PathBuf) {
        let scratch = Scratch::new(name);
        let path = scratch.0.join("weft.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o660
        );
        tokio::spawn(serve(listener, clients, asks));
        (scratch, path)
    }

    async fn line(stream: &mut BufReader<UnixStream>) -> Option<Response> {
        let mut text = String::new();
        let read = timeout(Duration::from_secs(10), stream.read_line(&mut text))
            .await
            .expect("in time")
            .unwrap_or(0);
        (read > 0).then(|| serde_json::from_str(&text).unwrap())
    }

    #[tokio::test]
    async fn requests_are_answered_and_bad_ones_named() {
        let (asks, mut asked) = mpsc::channel::<Ask>(8);
        let (_scratch, path) = served(asks, 1, "api").await;
        tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                let result = match ask.call {
                    Call::Ping { .. } => Ok(pong(Some(1.5), 2, None)),
                    Call::Status => Ok(Value::from("fine")),
                    _ => Err("not here".to_owned()),
                };
                let _ = ask.reply.send(Reply { result, last: true }).await;
            }
        });
        let mut stream = BufReader::new(UnixStream::connect(&path).await.unwrap());
        stream
            .get_mut()
            .write_all(b"{\"id\":7,\"call\":\"status\"}\n\nnonsense\n")
            .await
            .unwrap();
        let mut answers = [
            line(&mut stream).await.unwrap(),
            line(&mut stream).await.unwrap(),
        ];
        answers.sort_by_key(|answer| answer.id);
        assert!(
            matches!(&answers[0].result, api::Result::Error(problem) if problem.contains("no request"))
        );
        assert!(matches!(&answers[1].result, api::Result::Ok(value) if value == "fine"));

        let ping = b"{\"id\":8,\"call\":\"ping\",\"args\":{\"node\":\"x\",\"count\":2,\"interval_ms\":1,\"payload_len\":0}}\n";
        stream.get_mut().write_all(ping).await.unwrap();
        for sequence in 1..=2 {
            let answer = line(&mut stream).await.unwrap();
            assert_eq!(answer.last, sequence == 2);
            assert!(
                matches!(answer.result, api::Result::Ok(value) if value["sequence"] == sequence)
            );
        }

        // The only place is taken: the next client is turned away.
        let mut other = BufReader::new(UnixStream::connect(&path).await.unwrap());
        let answer = line(&mut other).await.unwrap();
        assert!(
            matches!(&answer, Response { id: 0, last: true, result: api::Result::Error(why) } if why.contains("1 clients")),
            "{answer:?}"
        );
        assert!(line(&mut other).await.is_none());
        // The library makes the refusal of it, whether the connection ends before the request is written or after.
        let refused = tokio::task::spawn_blocking(move || {
            (0..20).all(|_| {
                match weft_client::Client::connect(&path).and_then(|mut c| c.status()) {
                    Err(weft_client::Error::Refused(why)) => why.contains("api_clients"),
                    other => panic!("{other:?}"),
                }
            })
        });
        assert!(refused.await.unwrap());
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_a_dead_one_replaced() {
        let scratch = Scratch::new("api-listen");
        let path = scratch.0.join("weft.sock");
        let listener = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        drop(listen(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"a file").unwrap();
        assert_eq!(
            listen(&path).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
    }

    #[tokio::test]
    async fn a_line_without_end_ends_the_connection() {
        let (asks, _asked) = mpsc::channel::<Ask>(8);
        let (_scratch, path) = served(asks, 4, "api-long").await;
        let mut stream = BufReader::new(UnixStream::connect(&path).await.unwrap());
        let junk = vec![b'x'; MAX_LINE + 2];
        let _ = stream.get_mut().write_all(&junk).await;
        let answer = line(&mut stream).await.unwrap();
        assert!(matches!(answer.result, api::Result::Error(problem) if problem.contains("longer")));
        assert!(line(&mut stream).await.is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_mutated_request_panics(at in 0usize..80, byte: u8) {
            let mut line = br#"{"id":8,"call":"why","args":{"node":"x","constraints":{"avoid":["y"],"max_delay_ms":1.5}}}"#.to_vec();
            let at = at % line.len();
            line[at] = byte;
            let _ = parse(&line);
        }
    }
}
