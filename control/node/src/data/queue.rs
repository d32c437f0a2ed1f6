//! What was read from the TUN interface and is not sent yet: fair between peers, and between the flows to one peer, with
//! a bounded standing delay (FQ-CoDel, RFC 8290 and RFC 8289, one level added for peers).
//!
//! Two rounds of deficit round robin, one over peers and within each one over its flows; flows and peers that have just
//! begun go first, so that a question waits for no bulk transfer. Each flow has a CoDel: where its packets have waited
//! longer than the target for an interval, packets that know ECN are marked and others dropped, ever more often until
//! the delay is gone. Where all memory is in use, the flow that holds most loses its oldest packet.
//!
//! No clock in here, and nothing is allocated after the start.

use crate::offload::virtio::VirtioHeader;

/// Microseconds.
type Time = u64;

/// Delay that may stand.
const TARGET: Time = 5_000;
/// How long it may be exceeded before anything is done.
const INTERVAL: Time = 100_000;
/// Flows told apart, and peers; more share by chance.
const FLOWS: usize = 256;
const PEERS: usize = 64;
/// Bytes a flow, and a peer, sends in its turn.
const QUANTUM: i32 = 16 * 1024;
/// Below this a flow is left alone: one bundle may be long in coming.
const ALONE: usize = 64 * 1024;
/// No item, no flow, no peer.
const NONE: u16 = u16::MAX;

/// What waits.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// Buffer that holds it, in the numbering of the caller.
    pub buffer: u16,
    /// Its virtio header.
    pub header: VirtioHeader,
    /// Where it begins in the buffer.
    pub start: u32,
    /// Its bytes.
    pub len: u32,
    /// Whether its ends know ECN.
    pub ecn: bool,
}

/// What comes out.
#[derive(Clone, Copy, Debug)]
pub enum Out {
    /// To be sent; with congestion marked where the flag is set.
    Send(Item, bool),
    /// It waited too long: to be dropped, or of a super-packet one segment, which tells its sender as much as the loss of
    /// all of them and is made good at once.
    Late(Item),
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    item: Item,
    came: Time,
    next: u16,
}

/// CoDel's state of a flow (RFC 8289, section 5).
#[derive(Clone, Copy, Debug, Default)]
struct Codel {
    /// When the delay will have been too long for an interval; 0 where it is not.
    above_until: Time,
    dropping: bool,
    next: Time,
    count: u32,
    last_count: u32,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    head: u16,
    tail: u16,
    bytes: usize,
    deficit: i32,
    peer: u16,
    next: u16,
    active: bool,
    codel: Codel,
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    fresh: List,
    old: List,
    deficit: i32,
    next: u16,
    active: bool,
}

/// A chain of flows or peers.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u16,
    tail: u16,
}

impl List {
    const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
    };
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    slots: Box<[Slot]>,
    free: u16,
    flows: Box<[Flow]>,
    peers: Box<[Peer]>,
    fresh: List,
    old: List,
    len: usize,
    bytes: usize,
}

impl Queue {
    /// One for so many items, at most 65534.
    pub fn new(items: usize) -> Self {
        let items = items.min(usize::from(NONE) - 1);
        let empty = Item {
            buffer: 0,
            header: VirtioHeader::default(),
            start: 0,
            len: 0,
            ecn: false,
        };
        let slots = (0..items)
            .map(|index| Slot {
                item: empty,
                came: 0,
                next: if index + 1 == items {
                    NONE
                } else {
                    index as u16 + 1
                },
            })
            .collect();
        let flow = Flow {
            head: NONE,
            tail: NONE,
            bytes: 0,
            deficit: 0,
            peer: NONE,
            next: NONE,
            active: false,
            codel: Codel::default(),
        };
        let peer = Peer {
            fresh: List::EMPTY,
            old: List::EMPTY,
            deficit: 0,
            next: NONE,
            active: false,
        };
        Self {
            slots,
            free: if items == 0 { NONE } else { 0 },
            flows: vec![flow; FLOWS].into_boxed_slice(),
            peers: vec![peer; PEERS].into_boxed_slice(),
            fresh: List::EMPTY,
            old: List::EMPTY,
            len: 0,
            bytes: 0,
        }
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none wait.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an item of a flow to a peer, both named by a hash. False where there is no room: see [`Queue::shed`].
    #[inline]
    pub fn push(&mut self, item: Item, peer: u64, flow: u64, now: Time) -> bool {
        let at = self.free;
        let Some(slot) = self.slots.get_mut(usize::from(at)) else {
            return false;
        };
        self.free = slot.next;
        *slot = Slot {
            item,
            came: now,
            next: NONE,
        };
        self.len += 1;
        self.bytes += item.len as usize;

        let peer_index = peer as usize % PEERS;
        let index = (flow ^ peer.rotate_left(32)) as usize % FLOWS;
        let flow = &mut self.flows[index];
        if flow.head == NONE {
            flow.head = at;
        } else {
            self.slots[usize::from(flow.tail)].next = at;
        }
        flow.tail = at;
        flow.bytes += item.len as usize;
        if !flow.active {
            flow.active = true;
            flow.deficit = QUANTUM;
            flow.peer = peer_index as u16;
            let mut list = self.peers[peer_index].fresh;
            self.append_flow(&mut list, index as u16);
            self.peers[peer_index].fresh = list;
            let peer = &mut self.peers[peer_index];
            if !peer.active {
                peer.active = true;
                peer.deficit = QUANTUM;
                let mut list = self.fresh;
                self.append_peer(&mut list, peer_index as u16);
                self.fresh = list;
            }
        }
        true
    }

    /// Takes the oldest item of the flow that holds most.
    pub fn shed(&mut self) -> Option<Item> {
        let (fattest, _) = self
            .flows
            .iter()
            .enumerate()
            .filter(|(_, flow)| flow.head != NONE)
            .max_by_key(|(_, flow)| flow.bytes)?;
        self.take(fattest).map(|slot| slot.item)
    }

    /// What is next.
    #[inline]
    pub fn pop(&mut self, now: Time) -> Option<Out> {
        loop {
            let from_fresh = self.fresh.head != NONE;
            let index = if from_fresh {
                self.fresh.head
            } else {
                self.old.head
            };
            if index == NONE {
                return None;
            }
            let peer = usize::from(index);
            if self.peers[peer].deficit <= 0 {
                self.peers[peer].deficit += QUANTUM;
                self.rotate_peer(from_fresh);
                continue;
            }
            match self.pop_of(peer, now) {
                Some(out) => {
                    if let Out::Send(item, _) = &out {
                        self.peers[peer].deficit -= item.len as i32;
                    }
                    return Some(out);
                }
                None if from_fresh => self.rotate_peer(true),
                None => {
                    self.take_peer(false);
                    self.peers[peer].active = false;
                }
            }
        }
    }

    /// What is next of a peer.
    fn pop_of(&mut self, peer: usize, now: Time) -> Option<Out> {
        loop {
            let from_fresh = self.peers[peer].fresh.head != NONE;
            let index = if from_fresh {
                self.peers[peer].fresh.head
            } else {
                self.peers[peer].old.head
            };
            if index == NONE {
                return None;
            }
            let flow = usize::from(index);
            if self.flows[flow].deficit <= 0 {
                self.flows[flow].deficit += QUANTUM;
                self.rotate_flow(peer, from_fresh);
                continue;
            }
            match self.codel(flow, now) {
                Some(out) => {
                    if let Out::Send(item, _) = &out {
                        self.flows[flow].deficit -= item.len as i32;
                    }
                    return Some(out);
                }
                // A fresh one that is empty goes round once more, so that it cannot come back as fresh at once.
                None if from_fresh => self.rotate_flow(peer, true),
                None => {
                    self.take_flow(peer, false);
                    self.flows[flow].active = false;
                }
            }
        }
    }

    /// CoDel's dequeue.
    fn codel(&mut self, flow: usize, now: Time) -> Option<Out> {
        let Some(slot) = self.take(flow) else {
            self.flows[flow].codel.dropping = false;
            return None;
        };
        let standing = self.flows[flow].bytes;
        let codel = &mut self.flows[flow].codel;
        let late = if now.saturating_sub(slot.came) < TARGET || standing < ALONE {
            codel.above_until = 0;
            false
        } else if codel.above_until == 0 {
            codel.above_until = now + INTERVAL;
            false
        } else {
            now >= codel.above_until
        };
        let signal = if codel.dropping {
            if !late {
                codel.dropping = false;
                false
            } else if now >= codel.next {
                codel.count += 1;
                codel.next = control_law(codel.next, codel.count);
                true
            } else {
                false
            }
        } else if late {
            codel.dropping = true;
            // Where it began a short while ago, it goes on where it was.
            let delta = codel.count.saturating_sub(codel.last_count);
            let recent = now.saturating_sub(codel.next) < 16 * INTERVAL;
            codel.count = if delta > 1 && recent { delta } else { 1 };
            codel.last_count = codel.count;
            codel.next = control_law(now, codel.count);
            true
        } else {
            false
        };
        Some(match (signal, slot.item.ecn) {
            (true, false) => Out::Late(slot.item),
            (mark, _) => Out::Send(slot.item, mark),
        })
    }

    /// Takes the oldest item of a flow.
    fn take(&mut self, flow: usize) -> Option<Slot> {
        let flow = &mut self.flows[flow];
        let at = flow.head;
        let slot = *self.slots.get(usize::from(at))?;
        flow.head = slot.next;
        if flow.head == NONE {
            flow.tail = NONE;
        }
        flow.bytes -= slot.item.len as usize;
        self.slots[usize::from(at)].next = self.free;
        self.free = at;
        self.len -= 1;
        self.bytes -= slot.item.len as usize;
        Some(slot)
    }

    fn append_flow(&mut self, list: &mut List, index: u16) {
        self.flows[usize::from(index)].next = NONE;
        if list.head == NONE {
            list.head = index;
        } else {
            self.flows[usize::from(list.tail)].next = index;
        }
        list.tail = index;
    }

    fn append_peer(&mut self, list: &mut List, index: u16) {
        self.peers[usize::from(index)].next = NONE;
        if list.head == NONE {
            list.head = index;
        } else {
            self.peers[usize::from(list.tail)].next = index;
        }
        list.tail = index;
    }

    /// Takes the first flow off a peer's list.
    fn take_flow(&mut self, peer: usize, fresh: bool) -> u16 {
        let peer = &mut self.peers[peer];
        let list = if fresh {
            &mut peer.fresh
        } else {
            &mut peer.old
        };
        let index = list.head;
        list.head = self.flows[usize::from(index)].next;
        if list.head == NONE {
            list.tail = NONE;
        }
        index
    }

    /// Moves the first flow of a list to the end of the old ones.
    fn rotate_flow(&mut self, peer: usize, fresh: bool) {
        let index = self.take_flow(peer, fresh);
        let mut list = self.peers[peer].old;
        self.append_flow(&mut list, index);
        self.peers[peer].old = list;
    }

    fn take_peer(&mut self, fresh: bool) -> u16 {
        let list = if fresh {
            &mut self.fresh
        } else {
            &mut self.old
        };
        let index = list.head;
        list.head = self.peers[usize::from(index)].next;
        if list.head == NONE {
            list.tail = NONE;
        }
        index
    }

    fn rotate_peer(&mut self, fresh: bool) {
        let index = self.take_peer(fresh);
        let mut list = self.old;
        self.append_peer(&mut list, index);
        self.old = list;
    }
}

/// When the next signal is due: the interval over the square root of the count.
fn control_law(from: Time, count: u32) -> Time {
    from + (INTERVAL as f64 / f64::from(count.max(1)).sqrt()) as Time
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn item(tag: u16, len: u32, ecn: bool) -> Item {
        Item {
            buffer: tag,
            header: VirtioHeader::default(),
            start: 0,
            len,
            ecn,
        }
    }

    fn sent(out: Option<Out>) -> Option<(u16, bool)> {
        match out {
            Some(Out::Send(item, mark)) => Some((item.buffer, mark)),
            _ => None,
        }
    }

    #[test]
    fn order_within_a_flow_and_a_question_before_the_bulk() {
        let mut queue = Queue::new(200);
        for tag in 0..100 {
            assert!(queue.push(item(tag, 60_000, false), 1, 1, 0));
        }
        for expected in 0..10 {
            assert_eq!(sent(queue.pop(1)), Some((expected, false)));
        }
        assert!(queue.push(item(1000, 80, false), 1, 2, 2));
        assert!(queue.push(item(1001, 80, false), 2, 2, 2));
        // Each is out within a few turns, whatever waits.
        let next: Vec<_> = (0..4).filter_map(|_| sent(queue.pop(3))).collect();
        let tags: Vec<_> = next.iter().map(|(tag, _)| *tag).collect();
        assert!(tags.contains(&1000) && tags.contains(&1001), "{tags:?}");
        let rest: Vec<_> = std::iter::from_fn(|| sent(queue.pop(4))).collect();
        assert!(rest.is_sorted());
        assert_eq!((rest.len(), queue.len(), queue.bytes()), (88, 0, 0));
    }

    #[test]
    fn peers_share_alike_whatever_their_flows() {
        let mut queue = Queue::new(4000);
        for tag in 0..1000u16 {
            // Peer 1 has ten flows, peer 2 one, of smaller packets.
            assert!(queue.push(item(1, 20_000, false), 1, u64::from(tag % 10), 0));
            assert!(queue.push(item(2, 5_000, false), 2, 99, 0));
        }
        let mut bytes = HashMap::new();
        for _ in 0..500 {
            if let Some(Out::Send(item, _)) = queue.pop(1) {
                *bytes.entry(item.buffer).or_insert(0u32) += item.len;
            }
        }
        let (a, b) = (f64::from(bytes[&1]), f64::from(bytes[&2]));
        assert!((0.8..1.25).contains(&(a / b)), "{bytes:?}");
    }

    #[test]
    fn memory_runs_out_at_the_cost_of_the_fattest() {
        let mut queue = Queue::new(10);
        assert!(queue.push(item(7, 100, false), 1, 7, 0));
        for tag in 0..9 {
            assert!(queue.push(item(tag, 1_000, false), 1, 1, 0));
        }
        assert!(!queue.push(item(100, 1_000, false), 1, 1, 0));
        assert_eq!(queue.shed().map(|item| item.buffer), Some(0));
        assert!(queue.push(item(100, 1_000, false), 1, 1, 0));
    }

    /// A sender that sends twice what goes out, halves with every signal and grows slowly: the delay stays near the
    /// target; without signals it would be half a minute.
    #[test]
    fn a_standing_queue_is_answered_by_marks_or_drops() {
        for ecn in [false, true] {
            let mut queue = Queue::new(4000);
            let (mut now, mut rate, mut credit) = (0, 2.0, 0.0f64);
            let (mut signals, mut worst) = (0, 0);
            let mut came = std::collections::VecDeque::new();
            while now < 60_000_000 {
                now += 500;
                credit += rate;
                while credit >= 1.0 {
                    credit -= 1.0;
                    if queue.push(item(0, 60_000, ecn), 1, 1, now) {
                        came.push_back(now);
                    }
                }
                rate += 0.0005;
                match queue.pop(now) {
                    Some(Out::Send(_, mark)) => {
                        assert!(ecn || !mark);
                        let waited = now - came.pop_front().unwrap();
                        if now > 10_000_000 {
                            worst = worst.max(waited);
                        }
                        if mark {
                            signals += 1;
                            rate *= 0.7;
                        }
                    }
                    Some(Out::Late(_)) => {
                        assert!(!ecn);
                        came.pop_front();
                        signals += 1;
                        rate *= 0.7;
                    }
                    None => {}
                }
            }
            assert!(signals > 10, "{signals}");
            assert!(worst < 300_000, "{worst} us");
        }
    }

    proptest::proptest! {
        /// What goes in comes out once, in order within its flow.
        #[test]
        fn nothing_is_lost(steps in proptest::collection::vec((0..3u8, 0..40u64, 1..60_000u32), 1..600)) {
            let mut queue = Queue::new(64);
            let mut inside: HashMap<u64, std::collections::VecDeque<u32>> = HashMap::new();
            let mut now = 0;
            for (what, flow, len) in steps {
                now += 100;
                if what > 0 {
                    // The start tells items apart, the buffer their flow.
                    let item = Item { buffer: flow as u16, header: VirtioHeader::default(), start: now as u32, len, ecn: true };
                    if queue.push(item, flow % 5, flow, now) {
                        inside.entry(flow).or_default().push_back(now as u32);
                    } else {
                        let item = queue.shed().unwrap();
                        proptest::prop_assert_eq!(inside.get_mut(&u64::from(item.buffer)).unwrap().pop_front(), Some(item.start));
                    }
                } else if let Some(Out::Send(item, _)) = queue.pop(now) {
                    proptest::prop_assert_eq!(inside.get_mut(&u64::from(item.buffer)).unwrap().pop_front(), Some(item.start));
                }
                proptest::prop_assert_eq!(queue.len(), inside.values().map(std::collections::VecDeque::len).sum::<usize>());
            }
            while let Some(out) = queue.pop(now) {
                let Out::Send(item, _) = out else { unreachable!("all know ECN") };
                proptest::prop_assert_eq!(inside.get_mut(&u64::from(item.buffer)).unwrap().pop_front(), Some(item.start));
            }
            proptest::prop_assert!(inside.values().all(std::collections::VecDeque::is_empty));
            proptest::prop_assert_eq!(queue.bytes(), 0);
        }
    }
}
