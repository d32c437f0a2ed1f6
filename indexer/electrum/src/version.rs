//! Versions of the protocol and what a client and this server agree on.
//!
//! Spoken are 1.4 and its revisions, and 1.6; there is no 1.5. A client that says anything before
//! `server.version` is taken for one of 1.4: from 1.6 on it must come first.

use serde_json::Value;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Version(pub u16, pub u16, pub u16);

/// The lowest spoken, and what is assumed of a client that does not say.
pub const MIN: Version = Version(1, 4, 0);
/// The last of 1.4.
pub const LAST_1_4: Version = Version(1, 4, 3);
/// The highest spoken.
pub const MAX: Version = Version(1, 6, 0);

impl Version {
    /// Reads numbers with dots between them, at least one dot, at most two.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| {
            let digits = (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten()
        });
        let major = parts.next()??;
        let minor = parts.next()??;
        let revision = match parts.next() {
            None => 0,
            Some(revision) => revision?,
        };
        parts
            .next()
            .is_none()
            .then_some(Self(major, minor, revision))
    }

    /// Whether it is 1.6 or later.
    pub fn is_1_6(self) -> bool {
        self >= MAX
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)?;
        match self.2 {
            0 => Ok(()),
            revision => write!(f, ".{revision}"),
        }
    }
}

/// What a client offers: one version, or the lowest and the highest.
pub fn offered(param: Option<&Value>) -> Option<(Version, Version)> {
    let version = |value: &Value| Version::parse(value.as_str()?);
    match param {
        None | Some(Value::Null) => Some((MIN, MIN)),
        Some(Value::Array(range)) => match range.as_slice() {
            [low, high] => Some((version(low)?, version(high)?)),
            _ => None,
        },
        Some(one) => version(one).map(|v| (v, v)),
    }
}

/// The highest version both speak. `first` says whether it is the first thing the client said.
pub fn agree((low, high): (Version, Version), first: bool) -> Option<Version> {
    let most = if first { MAX } else { LAST_1_4 };
    let mut version = high.min(most);
    if version > LAST_1_4 && version < MAX {
        version = LAST_1_4;
    }
    (version >= low && version >= MIN).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_is_agreed_on() {
        for (offer, first, want) in [
            (json!("1.4"), true, Some("1.4")),
            (json!("1.4.2"), true, Some("1.4.2")),
            (json!("1.6"), true, Some("1.6")),
            (json!(["1.4", "1.6"]), true, Some("1.6")),
            (json!(["1.4", "1.6"]), false, Some("1.4.3")),
            (json!(["1.6", "1.6"]), false, None),
            (json!(["1.1", "1.4.2"]), true, Some("1.4.2")),
            (json!(["1.4", "1.5"]), true, Some("1.4.3")),
            (json!(["1.5", "1.5"]), true, None),
            (json!(["1.4", "2.0"]), true, Some("1.6")),
            (json!(["1.7", "2.0"]), true, None),
            (json!(["1.0", "1.2"]), true, None),
            (json!(["1.6", "1.4"]), true, None),
        ] {
            let agreed = agree(offered(Some(&offer)).unwrap(), first);
            assert_eq!(
                agreed.map(|v| v.to_string()).as_deref(),
                want,
                "{offer} {first}"
            );
        }
        for bad in [
            json!("1"),
            json!("1.4.2.1"),
            json!("1.x"),
            json!(1.4),
            json!(["1.4"]),
            json!("1.-4"),
            json!("1.+4"),
            json!({}),
        ] {
            assert_eq!(offered(Some(&bad)), None, "{bad}");
        }
        assert_eq!(offered(None), Some((MIN, MIN)));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text: String) {
            if let Some(version) = Version::parse(&text) {
                prop_assert_eq!(Version::parse(&version.to_string()), Some(version));
            }
        }
    }
}
