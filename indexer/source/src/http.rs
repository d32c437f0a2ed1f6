//! HTTP/1.1 to a node on this machine: time limits, bounded answers.
//!
//! A connection serves one request. Nodes before Bitcoin Core 26 wait for idle connections to
//! time out, half a minute, before they stop; opening one on the same machine costs 0.1 ms.

use std::time::Duration;

use ureq::Agent;

use crate::SourceError;

/// Time for an answer to begin and to be complete.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// A client for one node.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    agent: Agent,
    /// `http://host:port`, without a slash at the end.
    base: String,
    place: String,
}

/// Status and body of an answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The beginning of the body, for an error message.
    pub(crate) fn excerpt(&self) -> String {
        String::from_utf8_lossy(&self.body)
            .trim()
            .chars()
            .take(200)
            .collect()
    }
}

impl Http {
    /// A client for `base`, which may lack `http://`.
    pub(crate) fn new(base: &str) -> Self {
        let place = base
            .trim_end_matches('/')
            .trim_start_matches("http://")
            .to_owned();
        let config = Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .max_idle_connections(0)
            .max_idle_connections_per_host(0)
            .max_redirects(0)
            .proxy(None)
            .build();
        Self {
            agent: Agent::new_with_config(config),
            base: format!("http://{place}"),
            place,
        }
    }

    /// Host and port.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// GET; the body is at most `limit` bytes.
    pub(crate) fn get(&self, path: &str, limit: u64) -> Result<Answer, SourceError> {
        let answer = self
            .agent
            .get(format!("{}{path}", self.base))
            .header("connection", "close")
            .call();
        self.read(answer, path, limit, TIMEOUT)
    }

    /// POST of JSON, with credentials.
    pub(crate) fn post(
        &self,
        path: &str,
        authorization: Option<&str>,
        body: &[u8],
        limit: u64,
        timeout: Duration,
    ) -> Result<Answer, SourceError> {
        let mut request = self
            .agent
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .header("connection", "close");
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let request = request.config().timeout_global(Some(timeout)).build();
        self.read(request.send(body), path, limit, timeout)
    }

    fn read(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        path: &str,
        limit: u64,
        timeout: Duration,
    ) -> Result<Answer, SourceError> {
        let failed = |e: ureq::Error| match e {
            ureq::Error::Timeout(_) => SourceError::Stalled {
                place: self.place.clone(),
                what: path.to_owned(),
                after: timeout,
            },
            ureq::Error::BodyExceedsLimit(limit) => SourceError::BadAnswer {
                place: self.place.clone(),
                what: "answer",
                why: format!("it is longer than {limit} bytes"),
            },
            e => SourceError::Unreachable {
                place: self.place.clone(),
                why: e.to_string(),
            },
        };
        let mut answer = answer.map_err(failed)?;
        let status = answer.status().as_u16();
        let body = answer
            .body_mut()
            .with_config()
            .limit(limit)
            .read_to_vec()
            .map_err(failed)?;
        Ok(Answer { status, body })
    }
}
