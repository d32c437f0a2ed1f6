//! Block files of a node: `blocks/blk*.dat` with and without `xor.dat`, read while the node goes
//! on writing them.
//!
//! Every record's header is read once; the chain is the one of most work among headers whose
//! blocks are there. Blocks may stand in any order and stale ones among them. A record that the
//! node is still writing is left for the next look: the last record of the last file counts only
//! when its block is whole.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use weft_chain::blockfile::{CHECKSUM, FileKind, RECORD_HEAD, Step, XorKey, step};
use weft_chain::chains::AuxPow;
use weft_chain::hash::hex;
use weft_chain::headers::HeaderTree;
use weft_chain::wire::Reader;
use weft_chain::{Block, Chain, Error, Hash, Header, undo};

use crate::{Ahead, FullHeader, Kind, Source, SourceError, Spent, Tip, check_work};

/// Bytes read to see a record's header: its head, the header, and most AuxPoW proofs.
const PEEK: usize = 4096;
/// Bytes looked through at a time for the next record after something that is none.
const SKIP: usize = 1 << 20;
/// Files kept open.
const OPEN: usize = 16;
/// Most headers kept that wait for a predecessor.
const MAX_WAITING: usize = 100_000;
/// Headers whose work is checked together.
const TOGETHER: usize = 4096;
/// Headers given at a time, as the nodes do.
const HEADERS: usize = 2000;
/// Pause between looks at the files.
const POLL: Duration = Duration::from_millis(20);

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Location {
    file: u32,
    /// Offset of the block, after magic and length.
    offset: u32,
    len: u32,
}

#[derive(Debug)]
struct State {
    tree: HeaderTree,
    locations: HashMap<Hash, Location>,
    /// Headers without a known predecessor, by the predecessor's hash.
    waiting: HashMap<Hash, Vec<(Header, Location)>>,
    waiting_count: usize,
    /// Next file to be read and how far.
    file: u32,
    offset: u64,
    /// Headers that break a rule of the chain, the last of them, for the description.
    refused: u64,
    last_refused: Option<Error>,
}

/// Blocks from a node's files.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    chain: &'static dyn Chain,
    key: XorKey,
    state: Mutex<State>,
    open: Mutex<VecDeque<(FileKindKey, Arc<File>)>>,
    undo: Mutex<HashMap<u32, Arc<UndoIndex>>>,
}

type FileKindKey = (bool, u32);

/// Undo records of one file by the number of transactions they are for.
#[derive(Debug, Default)]
struct UndoIndex {
    /// File length when it was read.
    len: u64,
    records: HashMap<u64, Vec<(u64, u32)>>,
}

impl Files {
    /// Reads all headers of the files in `folder` (the node's `blocks`).
    pub fn open(folder: &Path, chain: &'static dyn Chain) -> Result<Self, SourceError> {
        let xor = folder.join("xor.dat");
        let key = match fs::read(&xor) {
            Ok(content) => XorKey::from_file(&content).ok_or_else(|| SourceError::BadFile {
                path: xor,
                why: format!("it has {} bytes, a key has 8", content.len()),
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => XorKey::default(),
            Err(source) => return Err(SourceError::File { path: xor, source }),
        };
        let files = Self {
            folder: folder.to_owned(),
            chain,
            key,
            state: Mutex::new(State {
                tree: HeaderTree::new(chain),
                locations: HashMap::new(),
                waiting: HashMap::new(),
                waiting_count: 0,
                file: first_file(folder)?,
                offset: 0,
                refused: 0,
                last_refused: None,
            }),
            open: Mutex::default(),
            undo: Mutex::default(),
        };
        files.refresh()?;
        let state = files.lock();
        if state.locations.is_empty() {
            let seen = state.waiting_count;
            let why = if seen > 0 || state.refused > 0 {
                format!(
                    "none of its {} blocks follows the genesis block of {}: the node is pruned or on another network",
                    seen as u64 + state.refused,
                    chain.params().name
                )
            } else {
                format!("its files hold no block of {}", chain.params().name)
            };
            return Err(SourceError::BadFile {
                path: folder.to_owned(),
                why,
            });
        }
        drop(state);
        Ok(files)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn name(&self, undo: bool, number: u32) -> PathBuf {
        self.folder.join(format!(
            "{}{number:05}.dat",
            if undo { "rev" } else { "blk" }
        ))
    }

    fn file_error(&self, undo: bool, number: u32) -> impl FnOnce(io::Error) -> SourceError {
        let path = self.name(undo, number);
        move |source| SourceError::File { path, source }
    }

    /// An open file, kept for the next time.
    fn file(&self, undo: bool, number: u32) -> Result<Arc<File>, SourceError> {
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(at) = open.iter().position(|(key, _)| *key == (undo, number)) {
            let entry = open.remove(at).expect("found above");
            let file = entry.1.clone();
            open.push_front(entry);
            return Ok(file);
        }
        let file =
            Arc::new(File::open(self.name(undo, number)).map_err(self.file_error(undo, number))?);
        open.truncate(OPEN - 1);
        open.push_front(((undo, number), file.clone()));
        Ok(file)
    }

    /// Reads at most `len` bytes, fewer at the end of the file, cleared of obfuscation.
    fn read(
        &self,
        undo: bool,
        number: u32,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, SourceError> {
        let mut data = self.read_raw(undo, number, offset, len)?;
        self.key.apply(&mut data, offset);
        Ok(data)
    }

    fn read_raw(
        &self,
        undo: bool,
        number: u32,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, SourceError> {
        let file = self.file(undo, number)?;
        let mut data = vec![0; len];
        let mut have = 0;
        while have < len {
            match file.read_at(&mut data[have..], offset + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.file_error(undo, number)(e)),
            }
        }
        data.truncate(have);
        Ok(data)
    }

    /// Reads what the node has written since the last look; `true` if the best chain changed.
    pub fn refresh(&self) -> Result<bool, SourceError> {
        let mut state = self.lock();
        let mut changed = false;
        loop {
            let last = !self.name(false, state.file + 1).exists();
            changed |= self.scan(&mut state, last)?;
            if last {
                // The next file may have come meanwhile; then this one is complete only now.
                if !self.name(false, state.file + 1).exists() {
                    return Ok(changed);
                }
                continue;
            }
            state.file += 1;
            state.offset = 0;
        }
    }

    /// Reads one file on from where the last look ended; `true` if the best chain changed.
    fn scan(&self, state: &mut State, last: bool) -> Result<bool, SourceError> {
        let mut changed = false;
        loop {
            let mut found = Vec::new();
            let read = self.read_records(state, last, &mut found);
            changed |= self.take_in(state, found);
            if !read? {
                return Ok(changed);
            }
        }
    }

    /// Appends the headers of new records to `found`; `true` if there may be more.
    fn read_records(
        &self,
        state: &mut State,
        last: bool,
        found: &mut Vec<(FullHeader, Location)>,
    ) -> Result<bool, SourceError> {
        let number = state.file;
        while found.len() < TOGETHER {
            let at = state.offset;
            if last {
                // The preallocated tail is zeros on the disk, whatever the key.
                let head = self.read_raw(false, number, at, RECORD_HEAD)?;
                if head.len() < RECORD_HEAD || head.iter().all(|b| *b == 0) {
                    return Ok(false);
                }
            }
            let data = self.read(false, number, at, PEEK)?;
            match step(&self.chain.params().magic, FileKind::Blocks, &data) {
                Step::More => return Ok(false),
                Step::Skip(_) => {
                    let data = self.read(false, number, at, SKIP)?;
                    match step(&self.chain.params().magic, FileKind::Blocks, &data) {
                        Step::Skip(n)
                            if last
                                && at + n as u64 + 3 >= at + data.len() as u64
                                && data.len() < SKIP =>
                        {
                            // Nothing up to the end of the file: perhaps the node is writing here.
                            return Ok(false);
                        }
                        Step::Skip(n) => state.offset += n as u64,
                        Step::More => return Ok(false),
                        Step::Record(_) => return Err(self.moved(number)),
                    }
                }
                Step::Record(len) => {
                    let location = Location {
                        file: number,
                        offset: (at + RECORD_HEAD as u64) as u32,
                        len,
                    };
                    match self.record(location, &data, last)? {
                        Some(header) => {
                            match header {
                                Ok(header) => found.push((header, location)),
                                Err(e) => self.refuse(state, e),
                            }
                            state.offset = at + RECORD_HEAD as u64 + u64::from(len);
                        }
                        None if last => return Ok(false),
                        // A length that leads nowhere: look on behind the magic.
                        None => state.offset += 4,
                    }
                }
            }
        }
        Ok(true)
    }

    fn moved(&self, number: u32) -> SourceError {
        SourceError::BadFile {
            path: self.name(false, number),
            why: "it changed while it was read".to_owned(),
        }
    }

    /// The header of a record, or why it has none; `None` if the record is not whole.
    fn record(
        &self,
        location: Location,
        data: &[u8],
        last: bool,
    ) -> Result<Option<Result<FullHeader, Error>>, SourceError> {
        let Location { file, offset, len } = location;
        let end = u64::from(offset) + u64::from(len);
        // Whether something follows, which the node begins only when this is written.
        let after = self.read_raw(false, file, end, RECORD_HEAD)?;
        let followed = after.len() == RECORD_HEAD && after.iter().any(|b| *b != 0);
        let mut content = data.get(RECORD_HEAD..).unwrap_or_default().to_vec();
        if !followed || content.len() < 80 {
            content = self.read(false, file, offset.into(), len as usize)?;
            if content.len() < len as usize {
                return Ok(None);
            }
            if last
                && Block::parse(self.chain, content.clone())
                    .and_then(|b| b.check_merkle())
                    .is_err()
            {
                return Ok(None);
            }
        }
        self.full_header(&content, location).map(Some)
    }

    /// Checks the work of headers, many at once, and puts them into the tree.
    fn take_in(&self, state: &mut State, found: Vec<(FullHeader, Location)>) -> bool {
        let (headers, locations): (Vec<FullHeader>, Vec<Location>) = found.into_iter().unzip();
        let checked = check_work(self.chain, &headers);
        let mut changed = false;
        for ((header, location), checked) in headers.into_iter().zip(locations).zip(checked) {
            match checked {
                Ok(()) => changed |= self.link(state, header.header, location),
                Err(e) => self.refuse(state, e),
            }
        }
        changed
    }

    /// The header of a record of which the beginning was read.
    fn full_header(
        &self,
        beginning: &[u8],
        at: Location,
    ) -> Result<Result<FullHeader, Error>, SourceError> {
        let read = |bytes: &[u8]| {
            let (header, auxpow) = self.chain.read_header(&mut Reader::new(bytes))?;
            Ok(FullHeader { header, auxpow })
        };
        match read(beginning) {
            Err(Error::Truncated { .. } | Error::TooMany { .. })
                if beginning.len() < at.len as usize =>
            {
                Ok(read(&self.read(
                    false,
                    at.file,
                    at.offset.into(),
                    at.len as usize,
                )?))
            }
            done => Ok(done),
        }
    }

    fn refuse(&self, state: &mut State, e: Error) {
        tracing::warn!(folder = %self.folder.display(), error = %e, "a header in the block files is refused");
        state.refused += 1;
        state.last_refused = Some(e);
    }

    /// Puts a header whose work was checked into the tree, and those that waited for it.
    fn link(&self, state: &mut State, header: Header, location: Location) -> bool {
        let genesis = state.tree.root().hash;
        let mut changed = false;
        let mut todo = vec![(header, location)];
        while let Some((header, location)) = todo.pop() {
            let hash = header.hash();
            if hash == genesis || state.tree.get(&hash).is_some() {
                // A node may have stored a block twice; either will do.
                state.locations.entry(hash).or_insert(location);
            } else {
                match state.tree.insert_trusted(&header) {
                    Ok(best) => {
                        changed |= best;
                        state.locations.insert(hash, location);
                    }
                    Err(Error::Orphan { prev, .. }) => {
                        if state.waiting_count < MAX_WAITING {
                            state.waiting_count += 1;
                            state
                                .waiting
                                .entry(prev)
                                .or_default()
                                .push((header, location));
                        } else {
                            state.refused += 1;
                        }
                        continue;
                    }
                    Err(e) => {
                        self.refuse(state, e);
                        continue;
                    }
                }
            }
            if let Some(next) = state.waiting.remove(&hash) {
                state.waiting_count -= next.len();
                todo.extend(next);
            }
        }
        changed
    }

    fn location(&self, hash: &Hash) -> Result<Location, SourceError> {
        let find = || self.lock().locations.get(hash).copied();
        if let Some(found) = find() {
            return Ok(found);
        }
        self.refresh()?;
        find().ok_or_else(|| SourceError::NoBlock {
            place: self.folder.display().to_string(),
            block: *hash,
        })
    }

    fn block(&self, hash: &Hash) -> Result<Vec<u8>, SourceError> {
        let at = self.location(hash)?;
        let raw = self.read(false, at.file, at.offset.into(), at.len as usize)?;
        if raw.len() < at.len as usize {
            return Err(SourceError::BadFile {
                path: self.name(false, at.file),
                why: format!(
                    "block {} should have {} bytes at offset {}, the file ends after {}",
                    hex(hash),
                    at.len,
                    at.offset,
                    raw.len()
                ),
            });
        }
        Ok(raw)
    }

    /// The undo records of a file; read again when it has grown.
    fn undo_index(&self, number: u32) -> Result<Option<Arc<UndoIndex>>, SourceError> {
        let path = self.name(true, number);
        let len = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SourceError::File { path, source }),
        };
        let mut kept = self.undo.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(index) = kept
            .get(&number)
            .filter(|i| i.len == len && number < self.lock().file)
        {
            return Ok(Some(index.clone()));
        }
        let magic = self.chain.params().magic;
        let mut index = UndoIndex {
            len,
            ..UndoIndex::default()
        };
        let mut at = 0u64;
        loop {
            let data = self.read(true, number, at, PEEK.min(64))?;
            match step(&magic, FileKind::Undo, &data) {
                Step::More => break,
                Step::Record(size) => {
                    let content = data.get(RECORD_HEAD..).unwrap_or_default();
                    if let Ok(count) = Reader::new(content).compact_size("count") {
                        index
                            .records
                            .entry(count)
                            .or_default()
                            .push((at + RECORD_HEAD as u64, size));
                    }
                    at += (RECORD_HEAD + CHECKSUM) as u64 + u64::from(size);
                }
                Step::Skip(_) => {
                    match step(&magic, FileKind::Undo, &self.read(true, number, at, SKIP)?) {
                        Step::Skip(n) => at += n as u64,
                        _ => break,
                    }
                }
            }
        }
        // A few files are enough: blocks of one height stand close together.
        if kept.len() >= OPEN {
            kept.clear();
        }
        let index = Arc::new(index);
        kept.insert(number, index.clone());
        Ok(Some(index))
    }
}

/// Number of the first block file: pruning deletes the lowest.
fn first_file(folder: &Path) -> Result<u32, SourceError> {
    let fail = |source| SourceError::File {
        path: folder.to_owned(),
        source,
    };
    let mut first = None;
    for entry in fs::read_dir(folder).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let number = name.to_str().and_then(|n| {
            n.strip_prefix("blk")?
                .strip_suffix(".dat")?
                .parse::<u32>()
                .ok()
        });
        first = first.into_iter().chain(number).min();
    }
    first.ok_or_else(|| SourceError::BadFile {
        path: folder.to_owned(),
        why: "it holds no blk*.dat".to_owned(),
    })
}

impl Source for Files {
    fn kind(&self) -> Kind {
        Kind::Files
    }

    fn describe(&self) -> String {
        let state = self.lock();
        let mut text = format!("block files in {}", self.folder.display());
        if !self.key.is_zero() {
            text.push_str(" (obfuscated)");
        }
        if state.waiting_count > 0 {
            text.push_str(&format!(
                ", {} blocks without their predecessor",
                state.waiting_count
            ));
        }
        if let Some(e) = &state.last_refused {
            text.push_str(&format!(", {} refused, the last: {e}", state.refused));
        }
        text
    }

    fn chain(&self) -> &'static dyn Chain {
        self.chain
    }

    fn tip(&self) -> Result<Tip, SourceError> {
        self.refresh()?;
        let tip = self.lock().tree.tip();
        Ok(Tip {
            height: tip.height,
            hash: Some(tip.hash),
        })
    }

    fn headers(&self, locator: &[Hash]) -> Result<Ahead, SourceError> {
        self.refresh()?;
        let state = self.lock();
        let fork = locator
            .iter()
            .find(|hash| state.tree.is_on_best_chain(hash))
            .copied();
        let Some(fork) = fork else {
            return Err(SourceError::OtherNetwork {
                place: self.folder.display().to_string(),
            });
        };
        let entries = state.tree.after(&[fork], HEADERS);
        let locations: Vec<Option<Location>> = entries
            .iter()
            .map(|e| state.locations.get(&e.hash).copied())
            .collect();
        drop(state);
        let mut headers = Vec::with_capacity(entries.len());
        for (entry, location) in entries.iter().zip(locations) {
            headers.push(FullHeader {
                header: entry.header,
                auxpow: self.auxpow_of(&entry.header, location)?,
            });
        }
        Ok(Ahead {
            fork: Some(fork),
            headers,
        })
    }

    fn blocks(&self, hashes: &[Hash]) -> Result<Vec<Vec<u8>>, SourceError> {
        hashes.iter().map(|hash| self.block(hash)).collect()
    }

    fn part(&self, block: &Hash, offset: u32, len: u32) -> Result<Option<Vec<u8>>, SourceError> {
        let at = self.location(block)?;
        if offset.checked_add(len).is_none_or(|end| end > at.len) {
            return Ok(None);
        }
        let from = u64::from(at.offset) + u64::from(offset);
        let data = self.read(false, at.file, from, len as usize)?;
        Ok((data.len() == len as usize).then_some(data))
    }

    /// The undo record beside a block: the one in the `rev` file of the same number whose
    /// checksum is of the block's predecessor. `None` where it is not there (yet).
    fn spent(&self, block: &Hash) -> Result<Option<Spent>, SourceError> {
        let at = self.location(block)?;
        let raw = self.block(block)?;
        let parsed =
            Block::parse(self.chain, raw).map_err(|e| SourceError::chain(self.describe(), e))?;
        let Some(index) = self.undo_index(at.file)? else {
            return Ok(None);
        };
        let transactions = parsed.len() as u64 - 1;
        for (offset, len) in index.records.get(&transactions).into_iter().flatten() {
            let data = self.read(true, at.file, *offset, *len as usize + CHECKSUM)?;
            let Some((content, sum)) = data.split_last_chunk::<CHECKSUM>() else {
                continue;
            };
            if content.len() != *len as usize
                || undo::check(&parsed.header().prev, content, sum).is_err()
            {
                continue;
            }
            let spent = undo::parse(self.chain, content)
                .map_err(|e| SourceError::chain(self.describe(), e))?;
            // Two blocks with the same predecessor may stand in one file.
            if undo::check_shape(&parsed, &spent).is_ok() {
                return Ok(Some(Spent::Coins(spent)));
            }
        }
        Ok(None)
    }

    fn wait(&self, known: &Hash, timeout: Duration) -> Result<bool, SourceError> {
        let deadline = Instant::now() + timeout;
        loop {
            if self.tip()?.hash != Some(*known) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            thread::sleep(left.min(POLL));
        }
    }

    fn batch(&self) -> usize {
        4
    }

    fn parallel(&self) -> usize {
        2
    }
}

impl Files {
    /// The proof of merged mining beside a header, read from its block again.
    fn auxpow_of(
        &self,
        header: &Header,
        location: Option<Location>,
    ) -> Result<Option<Box<AuxPow>>, SourceError> {
        // The empty reader: a chain without AuxPoW, or a header without, needs no bytes.
        if let Ok(None) = self.chain.read_auxpow(header, &mut Reader::new(&[])) {
            return Ok(None);
        }
        let Some(at) = location else { return Ok(None) };
        let data = self.read(false, at.file, at.offset.into(), PEEK.min(at.len as usize))?;
        let full = self
            .full_header(&data, at)?
            .map_err(|e| SourceError::chain(self.describe(), e))?;
        Ok(full.auxpow)
    }
}
