//! The session data path of a simulated host: real AEAD on real packet bytes.

use std::collections::BTreeMap;

use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use weft_abi::Label;

use crate::{
    identity::NodeId,
    io::{LspIngress, SessionIndex, SessionOp},
    session::{Cipher, SessionKeys},
};

/// Packets a receiver tolerates out of order, as in production.
const WINDOW: u64 = 8192;
/// Set in counters of messages of the session itself.
pub const MESSAGE_CLASS: u64 = 1 << 55;

/// One session as the shell keeps it.
pub struct Session {
    /// The other end.
    pub peer: NodeId,
    /// What to send on.
    pub ingress: Option<LspIngress>,
    epochs: BTreeMap<u8, Epoch>,
    sending: Option<u8>,
    labels: Vec<Label>,
}

struct Epoch {
    cipher: Cipher,
    seal: LessSafeKey,
    open: LessSafeKey,
    next: u64,
    windows: [Replay; 2],
}

#[derive(Default)]
struct Replay {
    highest: u64,
    seen: Vec<u64>,
}

impl Replay {
    fn admit(&mut self, number: u64) -> bool {
        let words = (WINDOW / 64) as usize;
        if self.seen.is_empty() {
            self.seen = vec![0; words];
        }
        if number + WINDOW <= self.highest {
            return false;
        }
        if number > self.highest {
            let first = (self.highest / 64 + 1).max((number / 64).saturating_sub(WINDOW / 64 - 1));
            (first..=number / 64).for_each(|word| self.seen[word as usize % words] = 0);
            self.highest = number;
        }
        let (word, bit) = ((number / 64) as usize % words, 1 << (number % 64));
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        new
    }
}

/// Why a delivered packet was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// No session is delivered on the label.
    NoSession,
    /// No keys of that epoch.
    NoEpoch,
    /// It does not open.
    BadTag,
    /// It was here before.
    Replay,
}

/// All sessions of a host.
#[derive(Default)]
pub struct Sessions {
    table: BTreeMap<SessionIndex, Session>,
    by_label: BTreeMap<u32, SessionIndex>,
    by_peer: BTreeMap<NodeId, SessionIndex>,
}

fn key(cipher: Cipher, bytes: &[u8; 32]) -> LessSafeKey {
    let algorithm = match cipher {
        Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        Cipher::Aes256Gcm => &AES_256_GCM,
    };
    LessSafeKey::new(UnboundKey::new(algorithm, bytes).expect("both algorithms take 32 bytes"))
}

fn nonce(cipher: Cipher, counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&match cipher {
        Cipher::ChaCha20Poly1305 => counter.to_le_bytes(),
        Cipher::Aes256Gcm => counter.to_be_bytes(),
    });
    Nonce::assume_unique_for_key(bytes)
}

impl Sessions {
    /// Applies one change. Panics where the node contradicts the contract.
    pub fn apply(&mut self, op: SessionOp) {
        match op {
            SessionOp::Install { session, peer, .. } => {
                let new = Session {
                    peer,
                    ingress: None,
                    epochs: BTreeMap::new(),
                    sending: None,
                    labels: Vec::new(),
                };
                assert!(
                    self.table.insert(session, new).is_none(),
                    "session {session:?} is in use"
                );
                self.by_peer.insert(peer, session);
            }
            SessionOp::AddEpoch {
                session,
                epoch,
                keys,
            } => {
                let SessionKeys { cipher, tx, rx } = &keys;
                let new = Epoch {
                    cipher: *cipher,
                    seal: key(*cipher, tx),
                    open: key(*cipher, rx),
                    next: 0,
                    windows: [Replay::default(), Replay::default()],
                };
                self.get_mut(session).epochs.insert(epoch, new);
            }
            SessionOp::UseEpoch { session, epoch } => {
                let entry = self.get_mut(session);
                assert!(
                    entry.epochs.contains_key(&epoch),
                    "epoch {epoch} without keys"
                );
                entry.sending = Some(epoch);
            }
            SessionOp::DropEpoch { session, epoch } => {
                self.get_mut(session).epochs.remove(&epoch);
            }
            SessionOp::SetDelivery { session, labels } => {
                let old = std::mem::replace(&mut self.get_mut(session).labels, labels.clone());
                for label in old {
                    if self.by_label.get(&label.0) == Some(&session) {
                        self.by_label.remove(&label.0);
                    }
                }
                self.by_label
                    .extend(labels.iter().map(|label| (label.0, session)));
            }
            SessionOp::SetIngress { session, ingress } => self.get_mut(session).ingress = ingress,
            SessionOp::Remove { session } => {
                let old = self
                    .table
                    .remove(&session)
                    .expect("a session to remove exists");
                self.by_label.retain(|_, index| *index != session);
                if self.by_peer.get(&old.peer) == Some(&session) {
                    self.by_peer.remove(&old.peer);
                }
            }
        }
    }

    fn get_mut(&mut self, session: SessionIndex) -> &mut Session {
        self.table
            .get_mut(&session)
            .expect("operations name sessions that were installed")
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The session with a peer.
    #[must_use]
    pub fn with(&self, peer: &NodeId) -> Option<(SessionIndex, &Session)> {
        let index = *self.by_peer.get(peer)?;
        Some((index, self.table.get(&index)?))
    }

    /// The session of an index.
    #[must_use]
    pub fn get(&self, session: SessionIndex) -> Option<&Session> {
        self.table.get(&session)
    }

    /// Whether traffic can be sent on a session now.
    #[must_use]
    pub fn ready(&self, session: SessionIndex) -> bool {
        self.table
            .get(&session)
            .is_some_and(|s| s.ingress.is_some() && s.sending.is_some())
    }

    /// Seals traffic: counter and ciphertext. None where there are no keys to send with.
    pub fn seal_traffic(&mut self, session: SessionIndex, plain: &[u8]) -> Option<(u64, Vec<u8>)> {
        let entry = self.table.get_mut(&session)?;
        let number = entry.sending?;
        let epoch = entry.epochs.get_mut(&number)?;
        let counter = u64::from(number) << 56 | epoch.next;
        epoch.next += 1;
        self.seal(session, counter, plain)
            .map(|sealed| (counter, sealed))
    }

    /// Seals a message of the session itself under a given counter.
    pub fn seal(&mut self, session: SessionIndex, counter: u64, plain: &[u8]) -> Option<Vec<u8>> {
        let epoch = self
            .table
            .get(&session)?
            .epochs
            .get(&((counter >> 56) as u8))?;
        let mut text = plain.to_vec();
        epoch
            .seal
            .seal_in_place_append_tag(nonce(epoch.cipher, counter), Aad::empty(), &mut text)
            .ok()?;
        Some(text)
    }

    /// Opens what was delivered on a label.
    pub fn open(
        &mut self,
        label: Label,
        counter: u64,
        sealed: &[u8],
    ) -> Result<(SessionIndex, Vec<u8>), OpenError> {
        let index = *self.by_label.get(&label.0).ok_or(OpenError::NoSession)?;
        let session = self.table.get_mut(&index).ok_or(OpenError::NoSession)?;
        let epoch = session
            .epochs
            .get_mut(&((counter >> 56) as u8))
            .ok_or(OpenError::NoEpoch)?;
        let mut text = sealed.to_vec();
        let plain = epoch
            .open
            .open_in_place(nonce(epoch.cipher, counter), Aad::empty(), &mut text);
        let plain = plain.map_err(|_| OpenError::BadTag)?.to_vec();
        let class = usize::from(counter & MESSAGE_CLASS != 0);
        if epoch.windows[class].admit(counter & (MESSAGE_CLASS - 1)) {
            Ok((index, plain))
        } else {
            Err(OpenError::Replay)
        }
    }

    /// How many labels deliver to sessions.
    #[must_use]
    pub fn delivery_labels(&self) -> usize {
        self.by_label.len()
    }
}
