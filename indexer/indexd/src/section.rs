//! A server's section of the configuration: what all servers have, and what is its own.

use std::fmt;
use std::marker::PhantomData;

use anyhow::{Result, anyhow};
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use weft_listen::Config as Server;

/// The settings that one server alone has.
pub trait SectionOf: Default + DeserializeOwned {
    /// The section's name.
    const NAME: &'static str;

    /// Defaults of what all servers have.
    fn server() -> Server {
        Server::default()
    }
}

/// A section. In the file both parts are one table.
#[derive(Debug, Clone)]
pub struct Section<T> {
    /// What all servers have.
    pub server: Server,
    /// What is its own.
    pub own: T,
}

impl<T: SectionOf> Default for Section<T> {
    fn default() -> Self {
        Self {
            server: T::server(),
            own: T::default(),
        }
    }
}

impl<T: SectionOf> Section<T> {
    /// Checks what all servers have.
    pub(crate) fn check(&self) -> Result<()> {
        self.server.check(T::NAME).map_err(|e| anyhow!(e))
    }
}

impl<'de, T: SectionOf> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Parts(PhantomData))
    }
}

struct Parts<T>(PhantomData<T>);

impl<'de, T: SectionOf> Visitor<'de> for Parts<T> {
    type Value = Section<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the section [{}]", T::NAME)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut server = T::server();
        let mut own = toml::Table::new();
        while let Some(name) = map.next_key::<String>()? {
            if !server.take(&name, &mut map)? {
                own.insert(name, map.next_value()?);
            }
        }
        let own = own.try_into().map_err(|e: toml::de::Error| {
            let (e, all) = (e.message(), Server::NAMES.join("`, `"));
            match e.starts_with("unknown field") {
                true => M::Error::custom(format!("{e}, or what all servers have: `{all}`")),
                false => M::Error::custom(e),
            }
        })?;
        Ok(Section { server, own })
    }
}
