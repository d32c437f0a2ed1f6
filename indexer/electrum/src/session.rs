//! One client: what it said, what it subscribed to, and what it has to be told.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use serde_json::{Value, json};
use weft_chain::Hash;
use weft_chain::hash::hex;
use weft_listen::count;
use weft_store::ScriptKey;
use weft_view::script::hex as bytes_hex;
use weft_view::{Error, Script, View, What};

use crate::json::{self, LongList};
use crate::limits::Limits;
use crate::methods::{self, Given};
use crate::server::Counters;
use crate::version::{self, Version};
use crate::wire::{self, BAD_REQUEST, Call, Failure, INTERNAL, Request};

/// Changes read at a time.
const ITEMS: usize = 256;
/// Rows that are read in less time than a change of threads takes.
const FEW_ROWS: usize = 500;
/// What is told at a time, in bytes; the rest follows when the client has taken it.
const TELL: usize = 64 << 10;

/// What the server says of itself.
#[derive(Debug, Clone, Default)]
pub struct Info {
    /// Shown to people.
    pub banner: String,
    /// Where to send thanks.
    pub donation_address: String,
    /// `hosts` of `server.features`.
    pub hosts: Value,
}

/// What a line gave.
#[derive(Debug, Default)]
pub struct Reply {
    /// Lines for the client, each with its end; the end of the last may follow.
    pub out: Vec<u8>,
    /// Whether the last line goes on with [`Session::go_on`], which is to be called before anything else.
    pub more: bool,
    /// Whether to hang up after them.
    pub close: bool,
    /// What it cost.
    pub cost: f64,
}

/// A script subscribed to, and the status the client knows.
#[derive(Debug, Clone, Copy)]
struct Subscribed {
    hash: Hash,
    status: Option<Hash>,
}

/// The text of a list as far as it is written, and what is still to be read.
type Begun = (Vec<u8>, Option<Box<LongList>>);

/// One client's side of the protocol.
#[derive(Debug)]
pub struct Session {
    pub(crate) view: View,
    pub(crate) info: Arc<Info>,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    version: Option<Version>,
    /// Whether the client has said anything.
    spoke: bool,
    close: bool,
    pub(crate) cost: f64,
    /// Whether questions are to take [`FEW_ROWS`] at most.
    pub(crate) quick: bool,
    /// Whether one was given up because it asks for more than [`FEW_ROWS`]; it comes again.
    pub(crate) gave_up: bool,
    /// The answer under way, a list.
    long: Option<Box<LongList>>,
    /// The header last told, and the change up to which headers need not be told.
    header: Option<(Hash, u64)>,
    scripts: HashMap<ScriptKey, Subscribed>,
    dirty: HashSet<ScriptKey>,
    /// Number of the last change read, and whether the state after it lasts.
    seen: u64,
    settled: bool,
}

impl Session {
    /// A client that has just come.
    pub fn new(view: View, info: Arc<Info>, limits: Limits, counters: Arc<Counters>) -> Self {
        Self {
            seen: view.feed().last(),
            view,
            info,
            limits,
            counters,
            version: None,
            spoke: false,
            close: false,
            cost: 0.0,
            quick: false,
            gave_up: false,
            long: None,
            header: None,
            scripts: HashMap::new(),
            dirty: HashSet::new(),
            settled: true,
        }
    }

    /// The version agreed on, or assumed.
    pub fn version(&self) -> Version {
        self.version.unwrap_or(version::MIN)
    }

    /// Scripts subscribed to.
    pub fn subscriptions(&self) -> usize {
        self.scripts.len()
    }

    /// Whether it is to be told anything at all.
    pub fn listens(&self) -> bool {
        self.header.is_some() || !self.scripts.is_empty()
    }

    /// Answers a line if that takes few rows of the database and nothing else: no bytes of transactions, no node. None where
    /// it is no such question, and then nothing happened.
    pub fn handle_quickly(&mut self, line: &[u8]) -> Option<Reply> {
        let Call::One(Ok(request)) = wire::read(line, 1) else {
            return None;
        };
        let script = methods::asked_of_rows(&request)?;
        let few = self.view.within(FEW_ROWS);
        // A balance is a sum over all coins.
        if request.method.ends_with("balance")
            && !few.has_few_coins(&few.script(script)).unwrap_or(false)
        {
            return None;
        }
        let all = std::mem::replace(&mut self.view, few);
        (self.cost, self.quick, self.gave_up) = (0.0, true, false);
        let mut out = Vec::new();
        self.one(Ok(request), &mut out, false);
        self.view = all;
        self.quick = false;
        if std::mem::take(&mut self.gave_up) {
            return None;
        }
        out.push(b'\n');
        Some(self.reply(out))
    }

    fn reply(&self, out: Vec<u8>) -> Reply {
        Reply {
            out,
            more: self.long.is_some(),
            close: self.close,
            cost: self.cost,
        }
    }

    /// Whether an answer is under way.
    pub fn is_answering(&self) -> bool {
        self.long.is_some()
    }

    /// The next piece of the answer under way.
    pub fn go_on(&mut self) -> Reply {
        self.cost = 0.0;
        let mut out = Vec::new();
        if let Some(mut list) = self.long.take() {
            match self.put_piece(&mut list, &mut out, json::PIECE) {
                Ok(()) if list.ended() => out.extend_from_slice(b"}\n"),
                Ok(()) => self.long = Some(list),
                // Half an answer is out: nothing that follows would be understood.
                Err(_) => {
                    count!(self.counters.dropped_broken_total);
                    self.close = true;
                }
            }
        }
        self.reply(out)
    }

    fn put_piece(
        &mut self,
        list: &mut LongList,
        out: &mut Vec<u8>,
        most: usize,
    ) -> Result<(), Failure> {
        let rows = list.put(out, most).map_err(failure)?;
        self.cost += rows as f64 / 100.0;
        Ok(())
    }

    /// Begins a list: all of it where it is short or has to be there as a whole.
    fn begin(
        &mut self,
        mut list: Box<LongList>,
        before: usize,
        whole: bool,
    ) -> Result<Begun, Failure> {
        let mut text = Vec::new();
        self.put_piece(&mut list, &mut text, json::FIRST)?;
        if !list.ended() && before + list.most_bytes().map_err(failure)? > self.limits.answer {
            return Err(self.answer_too_long());
        }
        while whole && !list.ended() {
            self.put_piece(&mut list, &mut text, json::PIECE)?;
        }
        let rest = (!list.ended()).then_some(list);
        Ok((text, rest))
    }

    fn answer_too_long(&self) -> Failure {
        count!(self.counters.answers_too_long_total);
        let most = self.limits.answer;
        Failure::new(
            BAD_REQUEST,
            format!("the answer would be longer than {most} bytes"),
        )
    }

    /// Answers a line.
    pub fn handle(&mut self, line: &[u8]) -> Reply {
        self.cost = 0.0;
        let mut out = Vec::new();
        match wire::read(line, self.limits.batch) {
            Call::One(request) => self.one(request, &mut out, true),
            Call::Batch(requests) => {
                out.push(b'[');
                for request in requests {
                    let before = out.len();
                    if before > 1 {
                        out.push(b',');
                    }
                    let start = out.len();
                    self.one(request, &mut out, false);
                    if out.len() == start {
                        out.truncate(before);
                    }
                }
                // A batch of notifications alone gets nothing.
                match out.len() {
                    1 => out.clear(),
                    _ => out.push(b']'),
                }
            }
        }
        if !out.is_empty() && self.long.is_none() {
            out.push(b'\n');
        }
        self.reply(out)
    }

    /// Says that a line was too long, before hanging up.
    pub fn too_long(&self, e: wire::TooLong) -> Vec<u8> {
        let mut out = Vec::new();
        let failure = Failure::new(wire::INVALID_REQUEST, e.to_string());
        wire::put_failure(&mut out, &Value::Null, &failure);
        out.push(b'\n');
        out
    }

    /// Appends the answer to a request, or its beginning where that is long and `in_pieces`.
    fn one(
        &mut self,
        request: Result<Request, (Value, Failure)>,
        out: &mut Vec<u8>,
        in_pieces: bool,
    ) {
        self.cost += 1.0;
        let (id, method, params) = match request {
            Ok(Request { id, method, params }) => (id, method, params),
            Err((id, failure)) => {
                count!(self.counters.requests_total);
                count!(self.counters.errors_total);
                self.spoke = true;
                return wire::put_failure(out, &id, &failure);
            }
        };
        let answer = methods::answer(self, &method, params);
        if self.gave_up {
            return;
        }
        count!(self.counters.requests_total);
        self.spoke = true;
        let Some(id) = id else { return };
        let answer = answer.and_then(|given| {
            let (text, rest) = match given {
                Given::Whole(text) => (text, None),
                Given::List(list) => self.begin(list, out.len(), !in_pieces)?,
            };
            if out.len() + text.len() > self.limits.answer {
                return Err(self.answer_too_long());
            }
            Ok((text, rest))
        });
        match answer {
            Ok((text, rest)) => {
                wire::begin_result(out, &id);
                out.extend_from_slice(&text);
                self.long = rest;
                if self.long.is_none() {
                    out.push(b'}');
                }
            }
            Err(failure) => {
                count!(self.counters.errors_total);
                wire::put_failure(out, &id, &failure);
            }
        }
    }

    pub(crate) fn negotiate(&mut self, offer: Option<&Value>) -> Result<Version, Failure> {
        if self.version.is_some() {
            return Err(Failure::new(BAD_REQUEST, "server.version was already sent"));
        }
        let Some(offer) = version::offered(offer) else {
            return Err(Failure::new(
                wire::INVALID_PARAMS,
                "protocol_version is \"1.4\", or a list of the lowest and the highest",
            ));
        };
        match version::agree(offer, !self.spoke) {
            Some(version) => {
                self.version = Some(version);
                Ok(version)
            }
            None => {
                count!(self.counters.dropped_version_total);
                self.close = true;
                let message = format!(
                    "unsupported protocol version: this server speaks {} to {} and 1.6{}",
                    version::MIN,
                    version::LAST_1_4,
                    if self.spoke {
                        ", that only if server.version comes first"
                    } else {
                        ""
                    },
                );
                Err(Failure::new(BAD_REQUEST, message))
            }
        }
    }

    pub(crate) fn subscribe_headers(&mut self) -> Result<Value, Failure> {
        let tip = self.view.tip().map_err(failure)?;
        let Some(tip) = tip else {
            return Err(Failure::new(BAD_REQUEST, "the index has no block yet"));
        };
        self.header = Some((tip.row.hash, tip.seq));
        Ok(header_json(tip.height, &tip.row.header.to_bytes()))
    }

    pub(crate) fn subscribe_script(&mut self, script: Script) -> Result<Value, Failure> {
        let full = self.scripts.len() >= self.limits.subscriptions;
        if full && !self.scripts.contains_key(&script.key) {
            count!(self.counters.subscriptions_refused_total);
            let most = self.limits.subscriptions;
            let message = format!("there may be {most} subscriptions, and there are");
            return Err(Failure::new(BAD_REQUEST, message));
        }
        let (status, rows) = self.view.status(&script).map_err(failure)?;
        self.cost += rows as f64 / 100.0;
        let hash = script.hash;
        self.scripts.insert(script.key, Subscribed { hash, status });
        Ok(status_json(status))
    }

    pub(crate) fn unsubscribe_script(&mut self, script: &Script) -> bool {
        self.dirty.remove(&script.key);
        self.scripts.remove(&script.key).is_some()
    }

    /// What the client has to be told now, and whether there is more to tell once it has taken
    /// that.
    pub fn tell(&mut self) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        if !self.listens() {
            self.seen = self.view.feed().last();
            return (out, false);
        }
        let caught_up = self.catch_up(&mut out);
        if !self.settled || !caught_up {
            return (out, !caught_up);
        }
        self.tell_tip(&mut out);
        let mut dirty = std::mem::take(&mut self.dirty).into_iter();
        for key in dirty.by_ref() {
            self.tell_script(key, &mut out);
            if out.len() > TELL {
                break;
            }
        }
        self.dirty.extend(dirty);
        (out, !self.dirty.is_empty())
    }

    /// Reads changes; false if there are more.
    fn catch_up(&mut self, out: &mut Vec<u8>) -> bool {
        let items = match self.view.feed().after(self.seen, ITEMS) {
            Ok(items) => items,
            Err(missed) => {
                // Too slow for the ring: whatever is subscribed to is looked at anew.
                count!(self.counters.lagged_total);
                self.seen = missed.last;
                self.settled = true;
                self.dirty.extend(self.scripts.keys().copied());
                return true;
            }
        };
        for item in &items {
            self.seen = item.seq;
            self.settled = item.settled;
            match item.what.scripts() {
                None => self.dirty.extend(self.scripts.keys().copied()),
                Some(touched) if touched.len() < self.scripts.len() => {
                    let known = touched.iter().filter(|key| self.scripts.contains_key(*key));
                    self.dirty.extend(known.copied());
                }
                Some(touched) => {
                    let ours = self.scripts.keys();
                    let known = ours.filter(|key| touched.binary_search(key).is_ok());
                    self.dirty.extend(known.copied());
                }
            }
            if let What::BlockCame {
                height,
                hash,
                header,
                ..
            } = &item.what
                && let Some((told, from)) = &mut self.header
                && item.seq > *from
            {
                *told = *hash;
                put_header(out, *height, &header.to_bytes());
                count!(self.counters.notifications_total);
            }
        }
        items.len() < ITEMS
    }

    /// Tells the tip where it is not the header last told: blocks left, or many came at once.
    fn tell_tip(&mut self, out: &mut Vec<u8>) {
        let Some((told, _)) = self.header else { return };
        match self.view.tip() {
            Ok(Some(tip)) if tip.row.hash != told && tip.seq == self.seen => {
                self.header = Some((tip.row.hash, tip.seq));
                put_header(out, tip.height, &tip.row.header.to_bytes());
                count!(self.counters.notifications_total);
            }
            Ok(_) => {}
            Err(e) => tracing::warn!("the tip cannot be told: {e}"),
        }
    }

    fn tell_script(&mut self, key: ScriptKey, out: &mut Vec<u8>) {
        let Some(known) = self.scripts.get(&key).copied() else {
            return;
        };
        let status = match self.view.status(&self.view.script(known.hash)) {
            Ok((status, _)) => status,
            Err(Error::TooMany { .. }) => {
                count!(self.counters.subscriptions_dropped_total);
                self.scripts.remove(&key);
                return;
            }
            Err(e) => {
                tracing::warn!("a status cannot be told: {e}");
                return;
            }
        };
        if status == known.status {
            return;
        }
        self.scripts.insert(key, Subscribed { status, ..known });
        let params = json!([hex(&known.hash), status_json(status)]);
        wire::put_notification(out, "blockchain.scripthash.subscribe", params);
        count!(self.counters.notifications_total);
    }
}

fn put_header(out: &mut Vec<u8>, height: u32, header: &[u8; 80]) {
    let params = json!([header_json(height, header)]);
    wire::put_notification(out, "blockchain.headers.subscribe", params);
}

fn header_json(height: u32, header: &[u8; 80]) -> Value {
    json!({ "height": height, "hex": bytes_hex(header) })
}

/// A status is shown as it is, not reversed.
fn status_json(status: Option<Hash>) -> Value {
    status.map_or(Value::Null, |status| bytes_hex(&status).into())
}

/// A view's error as the protocol has it.
pub(crate) fn failure(e: Error) -> Failure {
    match &e {
        Error::TooMany { .. } | Error::Wrong(_) => Failure::new(BAD_REQUEST, e.to_string()),
        Error::NoNode | Error::Node(_) | Error::Bytes { .. } => {
            Failure::new(wire::NODE_ERROR, e.to_string())
        }
        _ => {
            tracing::error!("a question failed: {e}");
            Failure::new(INTERNAL, "the server's database failed")
        }
    }
}
