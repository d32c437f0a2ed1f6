//! What can become of a packet, by name. The names are the ones in counters, logs, the API and the metrics.

/// A packet was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    /// Not for the mesh: passed untouched.
    Pass = 0,
    /// A handshake with a good network tag: passed untouched to the daemon.
    Handshake = 1,
    /// Link control, verified: handed up.
    Control = 2,
    /// A probe request, echoed from here.
    ProbeEchoed = 3,
    /// The answer to a probe of ours: handed up.
    ProbeReply = 4,
    /// Label replaced, sent on.
    Swap = 5,
    /// Label removed, sent on.
    Pop = 6,
    /// The LSP ends here: handed up.
    Deliver = 7,
    /// Verified, and the daemon is to send it on: the next hop's interface is not one this program sends on.
    Software = 8,
}

impl Verdict {
    /// Every verdict, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Pass,
        Self::Handshake,
        Self::Control,
        Self::ProbeEchoed,
        Self::ProbeReply,
        Self::Swap,
        Self::Pop,
        Self::Deliver,
        Self::Software,
    ];

    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Handshake => "handshake",
            Self::Control => "control",
            Self::ProbeEchoed => "probe_echoed",
            Self::ProbeReply => "probe_reply",
            Self::Swap => "swap",
            Self::Pop => "pop",
            Self::Deliver => "deliver",
            Self::Software => "software",
        }
    }
}

/// Why a packet was not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than the fixed part of the header.
    TooShort = 0,
    /// The lengths of frame, IP and UDP disagree.
    BadLength = 1,
    /// IPv4 options, or IPv6 extension headers before UDP.
    IpOptions = 2,
    /// An IP fragment.
    Fragment = 3,
    /// Another version of the packet format.
    BadVersion = 4,
    /// No such kind of packet.
    BadKind = 5,
    /// Bits that must be zero are not.
    BadReserved = 6,
    /// The slot was never given out, or is free again.
    UnknownSlot = 7,
    /// The slot's key epoch is over.
    StaleEpoch = 8,
    /// The tag does not verify: not sent by the neighbour.
    BadTag = 9,
    /// The sequence number was seen before.
    Replay = 10,
    /// The sequence number is behind the replay window.
    SeqTooOld = 11,
    /// The label has no entry here. Handed up.
    UnknownLabel = 12,
    /// The time to live ran out here. Handed up.
    TtlExpired = 13,
    /// More label entries than are looked at.
    StackTooDeep = 14,
    /// The last label was to be removed and nothing is under it.
    StackEmpty = 15,
    /// The label to deliver on has others under it.
    NotBottom = 16,
    /// Neither primary nor backup next hop is up. Handed up.
    NoNextHop = 17,
    /// Longer than the next hop's MTU. Handed up.
    TooBig = 18,
    /// The buffer has no room for the new headers.
    RewriteFailed = 19,
    /// A probe came in on a one-way link: there is no way to echo it.
    NoEcho = 20,
    /// The next hop's sequence numbers are used up; the link should have been rekeyed long ago.
    SeqExhausted = 21,
}

impl DropReason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 22] = [
        Self::TooShort,
        Self::BadLength,
        Self::IpOptions,
        Self::Fragment,
        Self::BadVersion,
        Self::BadKind,
        Self::BadReserved,
        Self::UnknownSlot,
        Self::StaleEpoch,
        Self::BadTag,
        Self::Replay,
        Self::SeqTooOld,
        Self::UnknownLabel,
        Self::TtlExpired,
        Self::StackTooDeep,
        Self::StackEmpty,
        Self::NotBottom,
        Self::NoNextHop,
        Self::TooBig,
        Self::RewriteFailed,
        Self::NoEcho,
        Self::SeqExhausted,
    ];

    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::BadLength => "bad_length",
            Self::IpOptions => "ip_options",
            Self::Fragment => "fragment",
            Self::BadVersion => "bad_version",
            Self::BadKind => "bad_kind",
            Self::BadReserved => "bad_reserved",
            Self::UnknownSlot => "unknown_slot",
            Self::StaleEpoch => "stale_epoch",
            Self::BadTag => "bad_tag",
            Self::Replay => "replay",
            Self::SeqTooOld => "seq_too_old",
            Self::UnknownLabel => "unknown_label",
            Self::TtlExpired => "ttl_expired",
            Self::StackTooDeep => "stack_too_deep",
            Self::StackEmpty => "stack_empty",
            Self::NotBottom => "not_bottom",
            Self::NoNextHop => "no_next_hop",
            Self::TooBig => "too_big",
            Self::RewriteFailed => "rewrite_failed",
            Self::NoEcho => "no_echo",
            Self::SeqExhausted => "seq_exhausted",
        }
    }

    /// The reason with this number.
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }

    /// Whether a labelled packet stopped for this reason goes up to the daemon, which may answer its sender.
    #[inline(always)]
    pub const fn is_handed_up(self) -> bool {
        matches!(
            self,
            Self::UnknownLabel | Self::TtlExpired | Self::NoNextHop | Self::TooBig
        )
    }
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fate {
    /// Up the stack of this host, untouched or marked as verified.
    Up,
    /// Out of an interface, with new headers.
    Out,
    /// Dropped.
    Drop,
    /// Up the stack, marked as verified: the daemon may answer its sender.
    HandUp,
}

/// What became of a frame.
///
/// A plain struct in which every field is always set: LLVM reads the unset fields of an enum's other variants before
/// it looks at the discriminant, which the verifier refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which way it goes.
    pub fate: Fate,
    /// `Pass` where it was dropped or handed up.
    pub verdict: Verdict,
    /// Meaningful where it was dropped or handed up.
    pub reason: DropReason,
    /// Interface it goes out of; 0 where it does not.
    pub ifindex: u32,
}

impl Outcome {
    /// Not for the mesh, or not for this host.
    pub const NOT_OURS: Self = Self::up(Verdict::Pass);

    /// Up the stack.
    #[inline(always)]
    pub const fn up(verdict: Verdict) -> Self {
        Self {
            fate: Fate::Up,
            verdict,
            reason: DropReason::TooShort,
            ifindex: 0,
        }
    }

    /// Out of an interface.
    #[inline(always)]
    pub const fn out(verdict: Verdict, ifindex: u32) -> Self {
        Self {
            fate: Fate::Out,
            verdict,
            reason: DropReason::TooShort,
            ifindex,
        }
    }

    /// Dropped.
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Self {
        Self {
            fate: Fate::Drop,
            verdict: Verdict::Pass,
            reason,
            ifindex: 0,
        }
    }

    /// Handed up, marked.
    #[inline(always)]
    pub const fn hand_up(reason: DropReason) -> Self {
        Self {
            fate: Fate::HandUp,
            verdict: Verdict::Pass,
            reason,
            ifindex: 0,
        }
    }

    /// The name of the verdict or of the reason.
    pub const fn name(self) -> &'static str {
        match self.fate {
            Fate::Up | Fate::Out => self.verdict.name(),
            Fate::Drop | Fate::HandUp => self.reason.name(),
        }
    }
}
