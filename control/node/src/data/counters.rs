//! Counters of the session data path, by the names the API and the metrics show.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Counter {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name shown.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Packets read from the TUN interface.
    TunRx = "tun_rx_packets",
    /// Packets written to the TUN interface.
    TunTx = "tun_tx_packets",
    /// Bundles among them: several packets of a flow in one write.
    TunBundles = "tun_tx_bundles",
    /// Packets the TUN interface did not take.
    TunWriteFailed = "tun_write_failed",
    /// Datagrams received on the underlay sockets.
    UdpRx = "udp_rx_packets",
    /// Datagrams received on AF_XDP sockets.
    XskRx = "xsk_rx_packets",
    /// Datagrams sent on the underlay sockets.
    UdpTx = "udp_tx_packets",
    /// Datagrams sent by XDP, past the sockets.
    XdpTx = "xdp_tx_packets",
    /// Datagrams lost because a receive socket was full.
    UdpOverflow = "udp_rx_overflow",
    /// Datagrams lost because an AF_XDP socket was full.
    XskOverflow = "xsk_rx_overflow",
    /// Datagrams longer than a packet buffer.
    UdpTruncated = "udp_rx_truncated",
    /// Datagrams to a local address that is not one of the underlay's.
    NotListening = "not_listening",
    /// Datagrams lost because the socket stayed full.
    UdpFull = "udp_tx_full",
    /// Datagrams over the MTU of the interface.
    UdpTooBig = "udp_tx_too_big",
    /// Datagrams the kernel refused for another reason.
    UdpRefused = "udp_tx_refused",
    /// Packets whose TCP segment size was lowered to what the path carries.
    MssLowered = "mss_lowered",
    /// Packets encrypted.
    Encrypted = "encrypted",
    /// Packets decrypted.
    Decrypted = "decrypted",
    /// Dropped: neither IPv4 nor IPv6, or shorter than its header says.
    Malformed = "inner_malformed",
    /// Dropped: source address that the sender has no right to.
    InnerSource = "inner_source",
    /// Dropped: destination that is not behind this node.
    InnerDestination = "inner_destination",
    /// Dropped: no session, and none came to be in time.
    NoSession = "no_session",
    /// Dropped: too many packets wait for sessions.
    QueueFull = "queue_full",
    /// Dropped from the flow that held most, for all memory was in use.
    FlowQueueFull = "flow_queue_full",
    /// Dropped: its flow's packets had waited too long (CoDel), and its ends do not know ECN.
    FlowQueueLate = "flow_queue_late",
    /// Congestion marked for the same reason.
    EcnMarked = "ecn_marked",
    /// Dropped: the session has no LSP now.
    NoLsp = "no_lsp",
    /// Dropped: the session has no keys to send with.
    NoKey = "no_key",
    /// Dropped: the first hop is down.
    NoNextHop = "no_next_hop",
    /// Dropped: no route matches the destination.
    NoRoute = "no_route",
    /// Dropped: longer than the LSP carries; answered by ICMP.
    TooBig = "inner_too_big",
    /// Dropped: the packet counter of the key is used up.
    Exhausted = "key_exhausted",
    /// Dropped on arrival: label not known to any session.
    UnknownDelivery = "unknown_delivery",
    /// Dropped on arrival: key epoch unknown.
    UnknownEpoch = "unknown_epoch",
    /// Dropped on arrival: does not decrypt.
    BadSeal = "bad_seal",
    /// Dropped on arrival: counter seen before.
    Replayed = "session_replay",
    /// Dropped on arrival: counter older than the window.
    TooOld = "session_too_old",
    /// Dropped on arrival: congestion was marked on a packet whose ends do not know ECN (RFC 6040).
    EcnDropped = "ecn_dropped",
    /// Dropped on arrival: so much stood in the receive queue that senders had to be told before more is lost.
    ReceiveLate = "receive_queue_late",
    /// ICMP messages written to the TUN interface.
    IcmpSent = "icmp_sent",
    /// ICMP messages not sent because of their rate limit.
    IcmpLimited = "icmp_limited",
    /// Packets that could not be forwarded and whose sender is not told because of the rate limit.
    ExceptionLimited = "exception_limited",
    /// Messages to the control loop.
    ToControl = "to_control",
    /// Dropped: the control loop's queue is full.
    ControlFull = "control_queue_full",
    /// Packets forwarded in user space.
    Forwarded = "user_forwarded",
}

/// One value of each.
#[derive(Debug)]
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Counter::ALL.len()])
    }
}

impl Counters {
    /// Adds.
    pub fn add(&self, counter: Counter, count: u64) {
        if count > 0 {
            self.0[counter as usize].fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Adds one.
    pub fn one(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// The value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// All values by name.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        Counter::ALL
            .iter()
            .map(|&counter| (counter.name().to_owned(), self.get(counter)))
            .collect()
    }
}
