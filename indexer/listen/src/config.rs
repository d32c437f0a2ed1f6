//! What every server's section of a configuration has.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::MapAccess;

use crate::means::Bounds;
use crate::tls::Pair;

/// Settings that every server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen without TLS; not at all if absent.
    pub listen: Option<SocketAddr>,
    /// Where to listen with TLS; not at all if absent.
    pub tls_listen: Option<SocketAddr>,
    /// Certificate, PEM; with none, one is made.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// Most clients at a time.
    pub max_clients: usize,
    /// Most of them from one address.
    pub max_clients_per_address: usize,
    /// Megabytes for long questions and answers of all clients.
    pub memory_mb: usize,
    /// See [`Bounds::idle`].
    pub idle_seconds: u64,
    /// See [`Bounds::write`].
    pub write_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            tls_listen: None,
            tls_cert: None,
            tls_key: None,
            max_clients: 1000,
            max_clients_per_address: 200,
            memory_mb: 128,
            idle_seconds: 60,
            write_seconds: 30,
        }
    }
}

impl Config {
    /// Names of the settings.
    pub const NAMES: [&str; 9] = [
        "listen",
        "tls_listen",
        "tls_cert",
        "tls_key",
        "max_clients",
        "max_clients_per_address",
        "memory_mb",
        "idle_seconds",
        "write_seconds",
    ];

    /// Takes the value of the setting `name`; false if it is none of [`Self::NAMES`], and then the value is still
    /// there.
    ///
    /// # Errors
    /// The value is of another kind.
    pub fn take<'de, M: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut M,
    ) -> Result<bool, M::Error> {
        match name {
            "listen" => self.listen = Some(map.next_value()?),
            "tls_listen" => self.tls_listen = Some(map.next_value()?),
            "tls_cert" => self.tls_cert = Some(map.next_value()?),
            "tls_key" => self.tls_key = Some(map.next_value()?),
            "max_clients" => self.max_clients = map.next_value()?,
            "max_clients_per_address" => self.max_clients_per_address = map.next_value()?,
            "memory_mb" => self.memory_mb = map.next_value()?,
            "idle_seconds" => self.idle_seconds = map.next_value()?,
            "write_seconds" => self.write_seconds = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Files that are named relatively are relative to `folder`.
    pub fn relative_to(&mut self, folder: &Path) {
        for file in [&mut self.tls_cert, &mut self.tls_key]
            .into_iter()
            .flatten()
        {
            *file = folder.join(&*file);
        }
    }

    /// Checks the section of this name.
    ///
    /// # Errors
    /// What is wrong, with the setting's name.
    pub fn check(&self, section: &str) -> Result<(), String> {
        let ranges = [
            ("max_clients", self.max_clients as u64, 1, 1 << 20),
            (
                "max_clients_per_address",
                self.max_clients_per_address as u64,
                1,
                1 << 20,
            ),
            ("memory_mb", self.memory_mb as u64, 8, 1 << 20),
            ("idle_seconds", self.idle_seconds, 1, 1 << 30),
            ("write_seconds", self.write_seconds, 1, 3600),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(format!(
                    "{section}.{name} = {value} must be from {least} to {most}"
                ));
            }
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(format!(
                "{section}.tls_cert and {section}.tls_key belong together: set both or none"
            ));
        }
        Ok(())
    }

    /// Bounds on the clients together.
    pub fn clients(&self) -> crate::Limits {
        crate::Limits {
            clients: self.max_clients,
            per_address: self.max_clients_per_address,
        }
    }

    /// Its own certificate and key.
    pub fn pair(&self) -> Option<Pair> {
        Some(Pair {
            certificate: self.tls_cert.clone()?,
            key: self.tls_key.clone()?,
        })
    }

    /// Bounds on what the server uses.
    pub fn bounds(&self, workers: usize) -> Bounds {
        Bounds {
            workers,
            memory: self.memory_mb << 20,
            idle: Duration::from_secs(self.idle_seconds),
            write: Duration::from_secs(self.write_seconds),
        }
    }
}
