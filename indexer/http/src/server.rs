//! The shell of hyper and axum: connections, time, bounds, SSE and WebSocket.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt, stream};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use weft_listen::{Bounds, Client, Listener, Means, SMALL, Share, count, counters};
use weft_view::View;

use crate::answer::{Answer, answer, catching_up};
use crate::coins::CoinList;
use crate::route::{self, Route};
use crate::stream::{self as changes, Stream, StreamCounters, StreamLimits, Told};

/// A stream says at least this often that it is alive.
const ALIVE: Duration = Duration::from_secs(20);

counters! {
    /// What the server counted.
    pub struct Counters("http") {
        requests_total: "Requests.",
        errors_total: "Requests answered with an error.",
        streams_total: "Streams begun, SSE and WebSocket.",
        refused_streams_total: "Streams refused because there were as many as may be.",
        refused_origin_total: "WebSockets refused because another site's page asked for them.",
        refused_body_total: "Bodies refused because they were too long or too slow.",
        refused_memory_total: "Requests refused because long bodies and answers took as much memory as they may.",
        dropped_slow_total: "Clients hung up on because they did not take an answer in time.",
    }
}

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Those that every server has.
    pub bounds: Bounds,
    /// Longest body of a request, bytes.
    pub body: usize,
    /// Most streams at a time.
    pub streams: usize,
    /// Bounds on each stream.
    pub stream: StreamLimits,
    /// Pages of which sites may ask: `*`, one origin, or none.
    pub cors: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bounds: weft_listen::Config::default().bounds(4),
            body: 2 << 20,
            streams: 1000,
            stream: StreamLimits::default(),
            cors: None,
        }
    }
}

/// The server.
#[derive(Debug)]
pub struct Server {
    view: View,
    settings: Settings,
    means: Arc<Means>,
    streams: Arc<Semaphore>,
    counters: Counters,
    stream_counters: Arc<StreamCounters>,
}

impl Server {
    /// A server of `view`.
    pub fn new(view: View, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            view,
            means: Arc::new(Means::new(&settings.bounds)),
            streams: Arc::new(Semaphore::new(settings.streams)),
            settings,
            counters: Counters::default(),
            stream_counters: Arc::default(),
        })
    }

    /// What it counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What its streams counted.
    pub fn stream_counters(&self) -> &StreamCounters {
        &self.stream_counters
    }

    /// Serves the clients of a listener until `stop` becomes true.
    pub async fn serve(self: Arc<Self>, listener: Listener, stop: watch::Receiver<bool>) {
        let router = Router::new().fallback(entry).with_state(self.clone());
        let patience = self.settings.bounds.write;
        let serve = move |client| {
            let (server, router) = (self.clone(), router.clone());
            async move { server.client(client, router).await }
        };
        listener.serve(patience, stop, serve).await;
    }

    async fn client(&self, client: Client, router: Router) {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.settings.bounds.idle)
            .max_buf_size(SMALL)
            .serve_connection(TokioIo::new(client), TowerToHyperService::new(router))
            .with_upgrades();
        if let Err(e) = connection.await {
            use std::error::Error as _;
            let slow = e.source().and_then(|e| e.downcast_ref::<io::Error>());
            if slow.is_some_and(|e| e.kind() == io::ErrorKind::TimedOut) {
                count!(self.counters.dropped_slow_total);
            }
        }
    }

    /// Memory for something long.
    fn share(&self, bytes: usize) -> Option<Share> {
        let share = self.means.share(bytes);
        if share.is_none() {
            count!(self.counters.refused_memory_total);
        }
        share
    }

    async fn respond(self: Arc<Self>, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        let origin = parts.headers.get(header::ORIGIN).cloned();
        if parts.method == Method::OPTIONS {
            return self.with_cors(StatusCode::NO_CONTENT.into_response(), origin.as_ref());
        }
        count!(self.counters.requests_total);
        let route = match route::parse(parts.method.as_str(), parts.uri.path()) {
            Ok(route) => route,
            Err(bad) => return self.finish(Answer::bad_path(&bad), origin.as_ref()),
        };
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let streams = matches!(route, Route::WebSocket | Route::Events);
        if streams && !self.view.caught_up() {
            return self.finish(catching_up(), origin.as_ref());
        }
        match route {
            Route::WebSocket => {
                if !self.same_site(&parts.headers) {
                    count!(self.counters.refused_origin_total);
                    let text = "pages of other sites may not open this WebSocket (http.cors)";
                    return self.finish(Answer::error(403, text), origin.as_ref());
                }
                let Ok(permit) = self.streams.clone().try_acquire_owned() else {
                    return self.no_more_streams(origin.as_ref());
                };
                match WebSocketUpgrade::from_request_parts(&mut parts, &self).await {
                    Ok(upgrade) => {
                        count!(self.counters.streams_total);
                        let most = self.settings.stream.message;
                        upgrade
                            .max_message_size(most)
                            .max_frame_size(most)
                            .write_buffer_size(0)
                            .on_upgrade(move |socket| self.socket(socket, permit))
                    }
                    Err(e) => self.with_cors(e.into_response(), origin.as_ref()),
                }
            }
            Route::Events => {
                let response = self.clone().events(&query, &parts.headers).await;
                self.with_cors(response, origin.as_ref())
            }
            route => {
                let body = match self.body(&parts.headers, body).await {
                    Ok(body) => body,
                    Err(refused) => return self.finish(refused, origin.as_ref()),
                };
                let view = self.view.clone();
                let work = move || answer(&view, &route, &query, &body.0);
                let answer =
                    self.means.work(work).await.unwrap_or_else(|| {
                        Answer::error(500, "the question could not be worked on")
                    });
                self.finish(answer, origin.as_ref())
            }
        }
    }

    /// The body of a request, and its share of the memory for all.
    async fn body(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(Bytes, Option<Share>), Answer> {
        let length = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok());
        let length: usize = match length.and_then(|text| text.parse().ok()) {
            Some(length) => length,
            None if headers.contains_key(header::TRANSFER_ENCODING) => self.settings.body,
            None => 0,
        };
        let too_long = || {
            count!(self.counters.refused_body_total);
            Answer::error(
                413,
                format!("a body has at most {} bytes", self.settings.body),
            )
        };
        if length > self.settings.body {
            return Err(too_long());
        }
        let share = match length {
            0..=SMALL => None,
            long => Some(self.share(long).ok_or_else(busy)?),
        };
        match timeout(self.settings.bounds.write, to_bytes(body, length)).await {
            Ok(Ok(bytes)) => Ok((bytes, share)),
            Ok(Err(_)) => Err(too_long()),
            Err(_) => {
                count!(self.counters.refused_body_total);
                Err(Answer::error(408, "the body did not come in time"))
            }
        }
    }

    fn finish(&self, mut answer: Answer, origin: Option<&HeaderValue>) -> Response {
        let share = match answer.body.len() {
            0..=SMALL => None,
            long => match self.share(long) {
                Some(share) => Some(share),
                None => {
                    answer = busy();
                    None
                }
            },
        };
        if answer.status >= 400 {
            count!(self.counters.errors_total);
        }
        let cache = match answer.keep {
            0 => HeaderValue::from_static("no-store"),
            keep => HeaderValue::from_str(&format!("public, max-age={keep}"))
                .unwrap_or(HeaderValue::from_static("no-store")),
        };
        let body = match (share, answer.rest) {
            (_, Some(rest)) => in_pieces(answer.body, rest, self.means.clone()),
            (None, None) => Body::from(answer.body),
            (Some(share), None) => shared(answer.body.into(), share),
        };
        let status =
            StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.kind));
        headers.insert(header::CACHE_CONTROL, cache);
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        self.with_cors(response, origin)
    }

    fn with_cors(&self, mut response: Response, origin: Option<&HeaderValue>) -> Response {
        let allowed = match (&self.settings.cors, origin) {
            (Some(any), _) if any == "*" => Some(HeaderValue::from_static("*")),
            (Some(one), Some(origin)) if one.as_bytes() == origin.as_bytes() => {
                Some(origin.clone())
            }
            _ => None,
        };
        if let Some(allowed) = allowed {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            headers.insert(header::VARY, HeaderValue::from_static("Origin"));
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_METHODS,
                HeaderValue::from_static("GET, POST, OPTIONS"),
            );
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                HeaderValue::from_static("Content-Type, Last-Event-ID"),
            );
        }
        response
    }

    /// Browsers let any page open a WebSocket anywhere; only the origin tells.
    fn same_site(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN).and_then(|v| v.to_str().ok()) else {
            return true;
        };
        let host = headers.get(header::HOST).and_then(|v| v.to_str().ok());
        let site = origin.split_once("://").map(|(_, site)| site);
        match self.settings.cors.as_deref() {
            Some("*") => true,
            Some(allowed) if allowed == origin => true,
            _ => site.is_some() && site == host,
        }
    }

    fn no_more_streams(&self, origin: Option<&HeaderValue>) -> Response {
        count!(self.counters.refused_streams_total);
        self.finish(
            Answer::error(503, "there are as many streams as may be"),
            origin,
        )
    }

    fn new_stream(&self) -> Stream {
        let counters = self.stream_counters.clone();
        Stream::new(self.view.clone(), self.settings.stream, counters)
    }

    /// Does blocking work with a stream.
    async fn with_stream<T: Send + 'static>(
        &self,
        mut stream: Box<Stream>,
        work: impl FnOnce(&mut Stream) -> T + Send + 'static,
    ) -> Option<(Box<Stream>, T)> {
        let work = move || {
            let out = work(&mut stream);
            (stream, out)
        };
        self.means.work(work).await
    }

    async fn events(self: Arc<Self>, query: &str, headers: &HeaderMap) -> Response {
        let mut wish = match changes::from_query(query) {
            Ok(wish) => wish,
            Err(why) => return self.finish(Answer::error(400, why), None),
        };
        // What a browser sends when it connects again.
        if let Some(last) = headers.get("last-event-id").and_then(|v| v.to_str().ok()) {
            wish.since = Some(last.to_owned());
            wish.after.clear();
        }
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            return self.no_more_streams(None);
        };
        let watch = self.view.feed().watch();
        let stream = Box::new(self.new_stream());
        let begun = self
            .with_stream(stream, move |stream| stream.subscribe(wish))
            .await;
        let (stream, first) = match begun {
            Some((stream, Ok(first))) => (stream, first),
            Some((_, Err(why))) => return self.finish(Answer::error(400, why), None),
            None => return self.finish(Answer::error(500, "the stream could not begin"), None),
        };
        count!(self.counters.streams_total);
        let state = Events {
            server: self.clone(),
            watch,
            stream: Some(stream),
            first: Some(first),
            _permit: permit,
        };
        let body = stream::unfold(state, |mut state| async move {
            let chunk = state.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(chunk)), state))
        });
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        (headers, Body::from_stream(body)).into_response()
    }

    async fn socket(self: Arc<Self>, socket: WebSocket, _permit: OwnedSemaphorePermit) {
        let (mut sink, mut source) = socket.split();
        let mut watch = self.view.feed().watch();
        let mut stream = Box::new(self.new_stream());
        let mut alive = tokio::time::interval(ALIVE);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Answers to pings of ours, missed twice, mean that nobody is there.
        let mut unanswered = 0;
        loop {
            let told = tokio::select! {
                message = source.next() => {
                    unanswered = 0;
                    match message {
                        Some(Ok(Message::Text(text))) => {
                            let work = move |stream: &mut Stream| stream.message(&text);
                            let Some((back, mut told)) = self.with_stream(stream, work).await else { return };
                            stream = back;
                            told.extend(self.pending(&mut stream).await.unwrap_or_default());
                            told
                        }
                        Some(Ok(Message::Binary(_))) => vec![stream.refuse("a message is a text")],
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    }
                }
                changed = watch.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    watch.borrow_and_update();
                    match self.pending(&mut stream).await {
                        Some(told) => told,
                        None => return,
                    }
                }
                _ = alive.tick() => {
                    unanswered += 1;
                    if unanswered > 3 || !self.send(&mut sink, Message::Ping(Bytes::new())).await {
                        return;
                    }
                    continue;
                }
            };
            let mut told = told;
            loop {
                for event in &told {
                    if !self
                        .send(&mut sink, Message::Text(event.body.to_string().into()))
                        .await
                    {
                        let frame = CloseFrame {
                            code: close_code::POLICY,
                            reason: "too slow".into(),
                        };
                        let _ = timeout(
                            Duration::from_millis(100),
                            sink.send(Message::Close(Some(frame))),
                        )
                        .await;
                        return;
                    }
                }
                match self.pending(&mut stream).await {
                    Some(more) if !more.is_empty() => told = more,
                    Some(_) => break,
                    None => return,
                }
            }
        }
    }

    /// What is to be told; empty when that is all. `None` if the work failed.
    async fn pending(&self, stream: &mut Box<Stream>) -> Option<Vec<Told>> {
        let mut told = Vec::new();
        loop {
            let idle = Box::new(self.new_stream());
            let mine = std::mem::replace(stream, idle);
            let (back, (mut some, more)) = self.with_stream(mine, Stream::tell).await?;
            *stream = back;
            told.append(&mut some);
            if !more || !told.is_empty() {
                return Some(told);
            }
        }
    }

    /// Sends one message; false if the client is gone or too slow.
    async fn send(&self, sink: &mut (impl SinkExt<Message> + Unpin), message: Message) -> bool {
        match timeout(self.settings.bounds.write, sink.send(message)).await {
            Ok(sent) => sent.is_ok(),
            Err(_) => {
                count!(self.counters.dropped_slow_total);
                false
            }
        }
    }
}

/// An SSE stream under way.
struct Events {
    server: Arc<Server>,
    watch: watch::Receiver<u64>,
    stream: Option<Box<Stream>>,
    first: Option<Vec<Told>>,
    _permit: OwnedSemaphorePermit,
}

impl Events {
    /// The next events as text; `None` at the end.
    async fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take() {
            return Some(sse(&first));
        }
        let mut stream = self.stream.take()?;
        loop {
            let told = self.server.pending(&mut stream).await?;
            if !told.is_empty() {
                self.stream = Some(stream);
                return Some(sse(&told));
            }
            match timeout(ALIVE, self.watch.changed()).await {
                Ok(Ok(())) => {
                    self.watch.borrow_and_update();
                }
                Ok(Err(_)) => return None,
                Err(_) => {
                    self.stream = Some(stream);
                    return Some(b": alive\n\n".to_vec());
                }
            }
        }
    }
}

/// Events in the form of `text/event-stream`. JSON holds no line ends.
fn sse(told: &[Told]) -> Vec<u8> {
    use std::fmt::Write;
    let mut out = String::new();
    for event in told {
        if let Some(id) = &event.id {
            let _ = writeln!(out, "id: {id}");
        }
        let _ = write!(out, "event: {}\ndata: {}\n\n", event.event, event.body);
    }
    out.into_bytes()
}

/// A long body in pieces, which gives its share of memory back when it is gone.
fn shared(body: Bytes, share: Share) -> Body {
    let state = (body, share);
    Body::from_stream(stream::unfold(state, |(mut rest, share)| async move {
        if rest.is_empty() {
            return None;
        }
        let piece = rest.split_to(rest.len().min(SMALL));
        Some((Ok::<_, Infallible>(piece), (rest, share)))
    }))
}

/// A body that begins with `first` and of which the rest is read as the client takes it.
fn in_pieces(first: Vec<u8>, rest: Box<CoinList>, means: Arc<Means>) -> Body {
    let state = (Some(Bytes::from(first)), Some(rest), means);
    Body::from_stream(stream::unfold(state, |(first, rest, means)| async move {
        if let Some(first) = first {
            return Some((Ok(first), (None, rest, means)));
        }
        let mut rest = rest?;
        let work = means.work(move || rest.next().map(|piece| (piece, rest)));
        match work.await {
            Some(Ok((Some(piece), rest))) => {
                Some((Ok(Bytes::from(piece)), (None, Some(rest), means)))
            }
            Some(Ok((None, _))) => None,
            // The head is sent: only an end before the last piece tells.
            failed => {
                tracing::error!("an answer ends early: {:?}", failed.map(|f| f.err()));
                let broken = io::Error::other("the answer cannot be read any further");
                Some((Err(broken), (None, None, means)))
            }
        }
    }))
}

fn busy() -> Answer {
    Answer::error(503, "the server has too much to do, try again")
}

async fn entry(State(server): State<Arc<Server>>, request: Request) -> Response {
    server.respond(request).await
}
