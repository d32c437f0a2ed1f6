//! The stream of changes: what a client follows and what it is told, without a socket.
//!
//! Each event is one JSON object with its kind in `event` and, where a client may go on from
//! it, a place in `id`: `<epoch>-<number>-<block>`, the last change told and the last block told.
//! A client that comes back with that place misses nothing and gets nothing twice:
//! - As long as the ring of changes reaches back to the number, everything since is told.
//! - Otherwise blocks are told from the chain: those after the block of the place, after
//!   `block_left` for those of the client's that left (which takes their hashes, see
//!   [`Subscribe::after`]). Scripts followed are told their present status, and `gap` says that
//!   changes of the mempool were missed.
//!
//! Blocks are told one by one in order, each that leaves and each that comes. The status of a
//! script (the Electrum protocol's) is told when it differs from the one last told.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use serde::Deserialize;
use serde_json::{Value, json};
use weft_chain::hash::{from_hex, hex};
use weft_chain::{Hash, Header};
use weft_listen::{count, counters};
use weft_store::ScriptKey;
use weft_view::script::{hex as bytes_hex, unhex};
use weft_view::{Error, Item, Result, View, What};

use crate::answer::script_by_name;

/// Blocks told that are remembered, to tell those that leave.
const REMEMBERED: usize = 2000;
/// Blocks told from the chain at a time.
const BLOCKS: u32 = 100;
/// Changes read at a time.
const ITEMS: usize = 64;
/// Scripts told at a time.
const SCRIPTS: usize = 200;

counters! {
    /// What streams counted.
    pub struct StreamCounters("stream") {
        events_total: "Events told.",
        resumed_total: "Clients that went on from a place.",
        gaps_total: "Times a client was told that it missed changes of the mempool.",
        messages_refused_total: "Messages of clients that were not understood.",
    }
}

/// Bounds on one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Most scripts followed.
    pub scripts: usize,
    /// Longest message of a client, bytes.
    pub message: usize,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            scripts: 10_000,
            message: 1 << 20,
        }
    }
}

/// What a client wants to follow.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subscribe {
    /// Blocks that leave and come.
    pub blocks: Option<bool>,
    /// Unconfirmed transactions that come and leave, and ids with each block.
    pub transactions: Option<bool>,
    /// Scripts, by address or script hash.
    pub scripts: Vec<String>,
    /// Place to go on from: the `id` of the last event.
    pub since: Option<String>,
    /// Hashes of the client's last blocks, the youngest first, without gaps.
    pub after: Vec<String>,
}

/// A client's message.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Message {
    Subscribe(Subscribe),
    Unsubscribe { scripts: Vec<String> },
    Ping,
}

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Its kind.
    pub event: &'static str,
    /// Place to go on from after it, where there is one.
    pub id: Option<String>,
    /// All of it, kind and place too.
    pub body: Value,
}

#[derive(Debug, Clone)]
struct Watched {
    name: String,
    hash: Hash,
    /// The status the client knows; `None` if it is not known which it knows.
    status: Option<Option<Hash>>,
}

/// One client's stream.
#[derive(Debug)]
pub struct Stream {
    view: View,
    limits: StreamLimits,
    counters: Arc<StreamCounters>,
    blocks: bool,
    transactions: bool,
    scripts: HashMap<ScriptKey, Watched>,
    dirty: HashSet<ScriptKey>,
    seen: u64,
    settled: bool,
    /// Blocks the client has, the last being its tip.
    told: VecDeque<(u32, Hash)>,
    /// Whether blocks have to be told from the chain first.
    behind: bool,
    /// Changes up to this number are in the blocks told from the chain.
    blocks_from: u64,
}

/// A place, as `id` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    epoch: u64,
    seq: u64,
    block: Option<Hash>,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let epoch = parts.next().filter(|e| e.len() == 16)?;
        let seq = parts.next()?.parse().ok()?;
        let block = match parts.next()? {
            "" => None,
            hash => Some(from_hex(hash)?),
        };
        let epoch = u64::from_str_radix(epoch, 16).ok()?;
        Some(Self { epoch, seq, block })
    }
}

impl Stream {
    /// A client that has just come and follows nothing yet.
    pub fn new(view: View, limits: StreamLimits, counters: Arc<StreamCounters>) -> Self {
        Self {
            seen: view.feed().last(),
            view,
            limits,
            counters,
            blocks: false,
            transactions: false,
            scripts: HashMap::new(),
            dirty: HashSet::new(),
            settled: true,
            told: VecDeque::new(),
            behind: false,
            blocks_from: 0,
        }
    }

    /// Whether it follows anything.
    pub fn listens(&self) -> bool {
        self.blocks || self.transactions || !self.scripts.is_empty()
    }

    fn place(&self) -> String {
        let block = self
            .told
            .back()
            .map_or_else(String::new, |(_, hash)| hex(hash));
        format!("{:016x}-{}-{block}", self.view.feed().epoch(), self.seen)
    }

    fn event(&self, event: &'static str, mut body: Value) -> Told {
        count!(self.counters.events_total);
        let id = self.place();
        body["event"] = event.into();
        body["id"] = id.clone().into();
        Told {
            event,
            id: Some(id),
            body,
        }
    }

    fn said(event: &'static str, mut body: Value) -> Told {
        body["event"] = event.into();
        Told {
            event,
            id: None,
            body,
        }
    }

    /// What a message that is not understood gets.
    pub fn refuse(&self, why: impl Into<String>) -> Told {
        count!(self.counters.messages_refused_total);
        Self::said("error", json!({ "message": why.into() }))
    }

    /// Takes a message of the client.
    pub fn message(&mut self, text: &str) -> Vec<Told> {
        if text.len() > self.limits.message {
            return vec![self.refuse(format!(
                "a message has at most {} bytes",
                self.limits.message
            ))];
        }
        match serde_json::from_str::<Message>(text) {
            Ok(Message::Subscribe(wish)) => match self.subscribe(wish) {
                Ok(told) => told,
                Err(why) => vec![self.refuse(why)],
            },
            Ok(Message::Unsubscribe { scripts }) => {
                let mut left = 0;
                for name in &scripts {
                    if let Some(script) = script_by_name(&self.view, name) {
                        self.dirty.remove(&script.key);
                        left += usize::from(self.scripts.remove(&script.key).is_some());
                    }
                }
                vec![Self::said("unsubscribed", json!({ "scripts": left }))]
            }
            Ok(Message::Ping) => vec![Self::said("pong", json!({}))],
            Err(e) => vec![self.refuse(format!("not understood: {e}"))],
        }
    }

    /// Begins to follow, from now or from where the client was.
    ///
    /// # Errors
    /// In words: something is not of the form it must have, or there is too much.
    pub fn subscribe(&mut self, wish: Subscribe) -> std::result::Result<Vec<Told>, String> {
        let mut wanted = Vec::with_capacity(wish.scripts.len().min(self.limits.scripts));
        for name in wish.scripts {
            let script = script_by_name(&self.view, &name).ok_or_else(|| {
                let name: String = name.chars().take(100).collect();
                format!("{name:?} is neither an address of this network nor a script hash")
            })?;
            wanted.push((script, name));
        }
        let new = wanted
            .iter()
            .filter(|(s, _)| !self.scripts.contains_key(&s.key))
            .count();
        if self.scripts.len() + new > self.limits.scripts {
            return Err(format!(
                "at most {} scripts can be followed",
                self.limits.scripts
            ));
        }
        let place = match &wish.since {
            None => None,
            Some(text) => Some(Place::parse(text).ok_or("since is no place of an event")?),
        };
        let after: Option<Vec<Hash>> = wish.after.iter().map(|h| from_hex(h)).collect();
        let after = after.ok_or("after is a list of block hashes")?;
        if after.len() > REMEMBERED {
            return Err(format!("after has at most {REMEMBERED} block hashes"));
        }
        let failed = |e: Error| e.to_string();
        let blocks = wish.blocks.unwrap_or(self.blocks || !self.listens());
        let starts = blocks && !self.blocks;
        self.blocks = blocks;
        self.transactions = wish.transactions.unwrap_or(self.transactions);
        let mut out = Vec::new();
        let mut resumed = false;
        if let Some(place) = place {
            count!(self.counters.resumed_total);
            let feed = self.view.feed();
            resumed = place.epoch == feed.epoch() && feed.after(place.seq, 0).is_ok();
            if resumed {
                self.seen = place.seq;
                self.blocks_from = place.seq;
            }
        }
        if starts || !after.is_empty() || place.is_some() {
            let from: Vec<Hash> = match (&after[..], place.and_then(|p| p.block)) {
                ([], block) => block.into_iter().collect(),
                (after, _) => after.to_vec(),
            };
            self.start_blocks(&from).map_err(failed)?;
            // The ring tells forks that came and left meanwhile too.
            self.behind &= !(resumed && after.is_empty());
        }
        let mut statuses = Vec::with_capacity(wanted.len());
        for (script, name) in wanted {
            let status = if place.is_some() {
                None
            } else {
                let (status, _) = self.view.status(&script).map_err(failed)?;
                statuses.push(json!({ "script": name, "status": status_json(status) }));
                Some(status)
            };
            if place.is_some() && !resumed {
                self.dirty.insert(script.key);
            }
            let hash = script.hash;
            self.scripts
                .insert(script.key, Watched { name, hash, status });
        }
        let tip = self.view.tip().map_err(failed)?;
        let tip = tip.map(|tip| json!({ "height": tip.height, "hash": hex(&tip.row.hash) }));
        out.push(self.event("subscribed", json!({ "tip": tip, "scripts": statuses })));
        if place.is_some() && !resumed && self.transactions {
            out.push(self.gap());
        }
        Ok(out)
    }

    fn gap(&self) -> Told {
        count!(self.counters.gaps_total);
        self.event("gap", json!({ "missed": "transactions" }))
    }

    /// Where the client's blocks end: `from` are its last ones, the youngest first, or none for
    /// the tip.
    fn start_blocks(&mut self, from: &[Hash]) -> Result<()> {
        self.told.clear();
        if from.is_empty() {
            if let Some(tip) = self.view.tip()? {
                self.told.push_back((tip.height, tip.row.hash));
                self.blocks_from = tip.seq;
            }
            return Ok(());
        }
        self.behind = true;
        for (newer, hash) in from.iter().enumerate() {
            let Some((height, _)) = self.view.reader().header_by_hash(hash)? else {
                continue;
            };
            let first = from.len().min(newer + 1);
            for (n, hash) in from[..first].iter().enumerate().rev() {
                self.told.push_back((height + (newer - n) as u32, *hash));
            }
            return Ok(());
        }
        // None of them is on the chain, nor is it known at which height they were; one that left
        // while the ring reaches is told from there.
        if let [only] = from {
            let left = self
                .view
                .feed()
                .after(self.seen, usize::MAX)
                .unwrap_or_default();
            let height = left.iter().find_map(|item| match &item.what {
                What::BlockLeft { height, hash, .. } if hash == only => Some(*height),
                _ => None,
            });
            if let Some(height) = height {
                self.told.push_back((height, *only));
                self.behind = false;
            }
        }
        Ok(())
    }

    /// What the client has to be told now, and whether there is more once it has taken that.
    pub fn tell(&mut self) -> (Vec<Told>, bool) {
        match self.try_tell() {
            Ok(told) => told,
            Err(e) => {
                tracing::warn!("a stream cannot go on: {e}");
                (
                    vec![Self::said("error", json!({ "message": e.to_string() }))],
                    false,
                )
            }
        }
    }

    fn try_tell(&mut self) -> Result<(Vec<Told>, bool)> {
        let mut out = Vec::new();
        if !self.listens() {
            self.seen = self.view.feed().last();
            return Ok((out, false));
        }
        if self.behind && self.blocks {
            self.tell_chain(&mut out)?;
            if self.behind {
                return Ok((out, true));
            }
        }
        let items = match self.view.feed().after(self.seen, ITEMS) {
            Ok(items) => items,
            Err(missed) => {
                self.seen = missed.last;
                self.settled = true;
                self.behind = true;
                self.dirty.extend(self.scripts.keys().copied());
                if self.transactions {
                    out.push(self.gap());
                }
                return Ok((out, true));
            }
        };
        for item in &items {
            self.tell_item(item, &mut out)?;
            if self.behind && self.blocks {
                return Ok((out, true));
            }
        }
        if items.len() == ITEMS {
            return Ok((out, true));
        }
        if self.settled {
            self.tell_scripts(&mut out)?;
            return Ok((out, !self.dirty.is_empty()));
        }
        Ok((out, false))
    }

    fn tell_item(&mut self, item: &Item, out: &mut Vec<Told>) -> Result<()> {
        let news = item.seq > self.blocks_from;
        self.seen = item.seq;
        self.settled = item.settled;
        match item.what.scripts() {
            None => self.dirty.extend(self.scripts.keys().copied()),
            Some(touched) => {
                for key in touched.iter().filter(|key| self.scripts.contains_key(*key)) {
                    self.dirty.insert(*key);
                }
            }
        }
        match &item.what {
            What::BlockCame {
                height,
                hash,
                header,
                txids,
                ..
            } if self.blocks && news => match self.told.back() {
                Some((_, last)) if *last != header.prev => self.behind = true,
                _ => self.tell_block(*height, *hash, header, txids, out),
            },
            What::BlockLeft {
                height,
                hash,
                txids,
                ..
            } if self.blocks && news => match self.told.back() {
                Some((_, last)) if last != hash => self.behind = true,
                _ => self.tell_left(*height, *hash, Some(txids), out)?,
            },
            What::Jumped { .. } if news => self.behind = true,
            What::Pool { added, removed, .. }
                if self.transactions && !(added.is_empty() && removed.is_empty()) =>
            {
                let added: Value = added
                    .iter()
                    .map(|tx| {
                        json!({ "txid": hex(&tx.txid), "fee": tx.fee, "vsize": tx.vsize, "value": tx.value })
                    })
                    .collect();
                let removed: Value = removed.iter().map(hex).collect();
                let body = json!({ "added": added, "removed": removed });
                out.push(self.event("transactions", body));
            }
            _ => {}
        }
        Ok(())
    }

    fn tell_block(
        &mut self,
        height: u32,
        hash: Hash,
        header: &Header,
        txids: &[Hash],
        out: &mut Vec<Told>,
    ) {
        self.told.push_back((height, hash));
        if self.told.len() > REMEMBERED {
            self.told.pop_front();
        }
        let mut body = json!({
            "height": height,
            "hash": hex(&hash),
            "previous": hex(&header.prev),
            "time": header.time,
            "header": bytes_hex(&header.to_bytes()),
            "tx_count": txids.len(),
        });
        if self.transactions {
            body["txids"] = txids.iter().map(hex).collect();
        }
        out.push(self.event("block", body));
    }

    fn tell_left(
        &mut self,
        height: u32,
        hash: Hash,
        txids: Option<&[Hash]>,
        out: &mut Vec<Told>,
    ) -> Result<()> {
        self.told.pop_back();
        if self.told.is_empty() {
            // What is below it is the client's tip now.
            if let Some(row) = self.view.header(height.saturating_sub(1))? {
                self.told.push_back((height.saturating_sub(1), row.hash));
            }
        }
        let mut body = json!({ "height": height, "hash": hex(&hash) });
        if let Some(txids) = txids.filter(|_| self.transactions) {
            body["txids"] = txids.iter().map(hex).collect();
        }
        out.push(self.event("block_left", body));
        Ok(())
    }

    /// Tells blocks from the chain, some at a time, until the client has its tip.
    fn tell_chain(&mut self, out: &mut Vec<Told>) -> Result<()> {
        let Some(tip) = self.view.tip()? else {
            self.behind = false;
            return Ok(());
        };
        while let Some((height, hash)) = self.told.back().copied() {
            if self
                .view
                .header(height)?
                .is_some_and(|row| row.hash == hash)
            {
                break;
            }
            if self.told.len() == 1 {
                // Whether the one below it is still there cannot be known.
                self.told.clear();
                break;
            }
            self.told.pop_back();
            let body = json!({ "height": height, "hash": hex(&hash) });
            out.push(self.event("block_left", body));
            if out.len() >= BLOCKS as usize {
                return Ok(());
            }
        }
        let Some((last, _)) = self.told.back().copied() else {
            self.told.push_back((tip.height, tip.row.hash));
            self.blocks_from = tip.seq;
            self.behind = false;
            let tip = json!({ "height": tip.height, "hash": hex(&tip.row.hash) });
            out.push(self.event("gap", json!({ "missed": "blocks", "tip": tip })));
            return Ok(());
        };
        let until = tip.height.min(last.saturating_add(BLOCKS));
        for height in last + 1..=until {
            let Some(row) = self.view.header(height)? else {
                return Ok(());
            };
            if self
                .told
                .back()
                .is_some_and(|(_, hash)| *hash != row.header.prev)
            {
                // The chain changed meanwhile; the next turn finds out.
                return Ok(());
            }
            let txids = self.view.reader().block_txids(height)?.unwrap_or_default();
            self.tell_block(height, row.hash, &row.header, &txids, out);
        }
        if self
            .told
            .back()
            .is_some_and(|(_, hash)| *hash == tip.row.hash)
        {
            self.blocks_from = tip.seq;
            self.behind = false;
        }
        Ok(())
    }

    fn tell_scripts(&mut self, out: &mut Vec<Told>) -> Result<()> {
        let mut dirty = std::mem::take(&mut self.dirty).into_iter();
        let mut changed = Vec::new();
        for key in dirty.by_ref().take(SCRIPTS) {
            let Some(watched) = self.scripts.get_mut(&key) else {
                continue;
            };
            let script = self.view.script(watched.hash);
            let status = match self.view.status(&script) {
                Ok((status, _)) => status,
                Err(e @ Error::TooMany { .. }) => {
                    let body = json!({ "script": watched.name, "message": e.to_string() });
                    self.scripts.remove(&key);
                    out.push(Self::said("error", body));
                    continue;
                }
                Err(e) => return Err(e),
            };
            if watched.status != Some(status) {
                watched.status = Some(status);
                changed.push(json!({ "script": watched.name, "status": status_json(status) }));
            }
        }
        self.dirty.extend(dirty);
        if !changed.is_empty() {
            out.push(self.event("scripts", json!({ "scripts": changed })));
        }
        Ok(())
    }
}

fn status_json(status: Option<Hash>) -> Value {
    status.map_or(Value::Null, |status| bytes_hex(&status).into())
}

/// What the query of an SSE request wants: `blocks`, `transactions` (both true or false), `scripts`
/// and `after` (lists with commas), `since`.
///
/// # Errors
/// In words: an unknown name, or a value that does not fit.
pub fn from_query(query: &str) -> std::result::Result<Subscribe, String> {
    let mut wish = Subscribe::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent(value).ok_or_else(|| format!("{name} is not well encoded"))?;
        let flag = || match value.as_str() {
            "" | "true" | "1" => Ok(Some(true)),
            "false" | "0" => Ok(Some(false)),
            _ => Err(format!("{name} should be true or false")),
        };
        let list = || {
            value
                .split(',')
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
        };
        match name {
            "blocks" => wish.blocks = flag()?,
            "transactions" => wish.transactions = flag()?,
            "scripts" => wish.scripts.extend(list()),
            "after" => wish.after.extend(list()),
            "since" => wish.since = Some(value.clone()),
            _ => return Err(format!("there is no parameter {name:?}")),
        }
    }
    Ok(wish)
}

/// Undoes percent encoding.
fn percent(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        out.extend(unhex(digits)?);
        rest = &rest[2..];
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn queries_and_places() {
        let wish =
            from_query("blocks=false&transactions&scripts=a,b&scripts=c&since=x%2Dy").unwrap();
        assert_eq!((wish.blocks, wish.transactions), (Some(false), Some(true)));
        assert_eq!(wish.scripts, ["a", "b", "c"]);
        assert_eq!(wish.since.as_deref(), Some("x-y"));
        for bad in ["x=1", "blocks=2", "since=%2", "since=%zz", "since=%ff"] {
            assert!(from_query(bad).is_err(), "{bad}");
        }
        let hash = "ab".repeat(32);
        let place = Place::parse(&format!("00000000000000ff-12-{hash}")).unwrap();
        assert_eq!(
            (place.epoch, place.seq, place.block),
            (255, 12, from_hex(&hash))
        );
        assert!(
            Place::parse("00000000000000ff-12-")
                .unwrap()
                .block
                .is_none()
        );
        for bad in [
            "",
            "-",
            "ff-1-",
            "00000000000000ff-12",
            "00000000000000ff--",
            "00000000000000fg-1-",
        ] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_answered(query: String) {
            let _ = from_query(&query);
            let _ = Place::parse(&query);
        }

        #[test]
        fn any_message_is_answered(text in "\\PC{0,60}|\\{\"op\":\"(subscribe|ping|unsubscribe)\"(,\"[a-z]{1,8}\":(true|1|\\[\\]|\"x\"))?\\}") {
            let _ = serde_json::from_str::<Message>(&text);
        }
    }
}
