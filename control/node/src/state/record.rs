//! What weftd changed on this host, written down before each change, so that it can be named and undone, after a crash
//! too. One JSON document, replaced as a whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use weft_client::api::HostChange;

use super::{StateError, keep_aside, write_atomically};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Maps, programs and links pinned under this folder of a bpffs.
    Pins {
        /// The folder.
        path: PathBuf,
    },
    /// The XDP program on an interface; its link is pinned.
    Xdp {
        /// Interface name.
        interface: String,
    },
    /// The API's socket.
    Socket {
        /// Its path.
        path: PathBuf,
    },
    /// A TUN interface, not persistent.
    Tun {
        /// Its name.
        interface: String,
    },
    /// An address on the TUN interface.
    Address {
        /// Interface name.
        interface: String,
        /// Address and prefix length.
        address: String,
    },
    /// A route through the TUN interface.
    Route {
        /// Interface name.
        interface: String,
        /// Prefix and metric.
        prefix: String,
    },
}

impl Change {
    /// For people.
    pub fn describe(&self) -> HostChange {
        let (kind, what, undo) = match self {
            Self::Pins { path } => (
                "pin",
                path.display().to_string(),
                "remove the folder; the kernel frees the maps".to_owned(),
            ),
            Self::Xdp { interface } => (
                "xdp",
                interface.clone(),
                "remove the pinned link; the program detaches".to_owned(),
            ),
            Self::Socket { path } => (
                "socket",
                path.display().to_string(),
                "remove the file".to_owned(),
            ),
            Self::Tun { interface } => ("tun", interface.clone(), "ends with weftd".to_owned()),
            Self::Address { interface, address } => (
                "address",
                format!("{address} on {interface}"),
                format!("ends with {interface}"),
            ),
            Self::Route { interface, prefix } => (
                "route",
                format!("{prefix} via {interface}"),
                format!("delete it; ends with {interface} too"),
            ),
        };
        HostChange {
            kind: kind.to_owned(),
            what,
            undo,
        }
    }

    /// Whether the kernel undoes it when the daemon ends, however it ends.
    pub fn ends_with_process(&self) -> bool {
        matches!(
            self,
            Self::Tun { .. } | Self::Address { .. } | Self::Route { .. }
        )
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    changes: Vec<Change>,
}

const VERSION: u32 = 1;

/// The record.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    changes: Vec<Change>,
    stored: bool,
}

impl Record {
    /// Reads the record of an earlier run, or begins an empty one. A damaged one is kept aside; the second value then
    /// tells so.
    pub fn load(path: &Path) -> Result<(Self, Option<String>), StateError> {
        let mut record = Self {
            path: path.to_owned(),
            changes: vec![],
            stored: true,
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((record, None)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => String::new(),
            Err(error) => return Err(StateError::io(path, "reading")(error)),
        };
        let problem = match serde_json::from_str::<Document>(&text) {
            Ok(document) if document.version == VERSION => {
                record.changes = document.changes;
                return Ok((record, None));
            }
            Ok(document) => format!(
                "it has version {}, this program reads version {VERSION}",
                document.version
            ),
            Err(error) => error.to_string(),
        };
        let aside = keep_aside(path)?;
        let notice = format!(
            "the record of host changes {} was damaged ({problem}) and is kept as {}; changes of an earlier run that it named may remain",
            path.display(),
            aside.display()
        );
        Ok((record, Some(notice)))
    }

    /// What stands in it.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Writes changes down that are about to be made. The error is for a notice: the change goes on without.
    pub fn add(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), StateError> {
        for change in changes {
            if !self.changes.contains(&change) {
                self.changes.push(change);
                self.stored = false;
            }
        }
        self.store()
    }

    /// Strikes out changes that were undone.
    pub fn remove(&mut self, gone: impl Fn(&Change) -> bool) -> Result<(), StateError> {
        let before = self.changes.len();
        self.changes.retain(|change| !gone(change));
        self.stored &= before == self.changes.len();
        self.store()
    }

    /// Writes what could not be written before.
    pub fn retry(&mut self) -> Result<(), StateError> {
        self.store()
    }

    fn store(&mut self) -> Result<(), StateError> {
        if self.stored {
            return Ok(());
        }
        if self.changes.is_empty() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::io(&self.path, "removing")(error));
                }
                _ => {}
            }
        } else {
            let document = Document {
                version: VERSION,
                changes: self.changes.clone(),
            };
            let text = serde_json::to_vec_pretty(&document).unwrap_or_default();
            write_atomically(&self.path, &text)?;
        }
        self.stored = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Scratch, *};

    #[test]
    fn changes_are_found_again_until_struck_out() {
        let scratch = Scratch::new("record");
        let path = scratch.0.join("host.json");
        let (mut record, notice) = Record::load(&path).unwrap();
        assert!(notice.is_none());
        let tun = Change::Tun {
            interface: "weft0".into(),
        };
        let xdp = Change::Xdp {
            interface: "eth0".into(),
        };
        record.add([tun.clone(), xdp.clone(), tun.clone()]).unwrap();
        let (mut again, _) = Record::load(&path).unwrap();
        assert_eq!(again.changes(), [tun, xdp.clone()]);
        again.remove(Change::ends_with_process).unwrap();
        assert_eq!(Record::load(&path).unwrap().0.changes(), [xdp]);
        again.remove(|_| true).unwrap();
        assert!(!path.exists());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\\n]{0,200}", cut in 0usize..90) {
            let _ = serde_json::from_str::<Document>(&text);
            let whole = r#"{"version":1,"changes":[{"kind":"route","interface":"weft0","prefix":"fd00::/8"}]}"#;
            let _ = serde_json::from_str::<Document>(&whole[..cut.min(whole.len())]);
        }
    }

    #[test]
    fn a_damaged_record_is_kept_aside() {
        let scratch = Scratch::new("record-damaged");
        let path = scratch.0.join("host.json");
        for text in [
            "{",
            "{\"version\":9,\"changes\":[]}",
            "{\"version\":1,\"changes\":[{\"kind\":\"x\"}]}",
        ] {
            fs::write(&path, text).unwrap();
            let (record, notice) = Record::load(&path).unwrap();
            assert!(record.changes().is_empty());
            assert!(notice.unwrap().contains("kept as"));
            assert!(!path.exists());
        }
    }
}
