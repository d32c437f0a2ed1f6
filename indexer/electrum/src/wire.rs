//! JSON-RPC in lines: cutting a stream into lines, reading requests, writing answers.

use serde_json::{Map, Value, json};

/// Commas and opening brackets in one line beyond which it is not read at all: what they could
/// become in memory is some fifty times their length.
const MAX_PARTS: usize = 20_000;
/// Longest id that is given back.
const MAX_ID: usize = 256;

/// No JSON.
pub const PARSE_ERROR: i64 = -32700;
/// JSON, but no request.
pub const INVALID_REQUEST: i64 = -32600;
/// No such method in this version.
pub const UNKNOWN_METHOD: i64 = -32601;
/// The method does not take these.
pub const INVALID_PARAMS: i64 = -32602;
/// This server failed.
pub const INTERNAL: i64 = -32603;
/// The question is understood and cannot be answered.
pub const BAD_REQUEST: i64 = 1;
/// The node failed.
pub const NODE_ERROR: i64 = 2;

/// Cuts a stream into lines. Holds at most one line more than was pushed at once.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    start: usize,
    /// Bytes that are known to hold no end of line.
    searched: usize,
}

/// A line is longer than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {0} bytes")]
pub struct TooLong(pub usize);

impl Lines {
    /// Appends what came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The line, where there is exactly one and it is no longer than that.
    pub fn only(&self, longest: usize) -> Option<&[u8]> {
        let held = self.buffer.get(self.start..)?;
        let line = held.strip_suffix(b"\n")?;
        (line.len() <= longest && !line.contains(&b'\n')).then_some(line)
    }

    /// Drops what is held.
    pub fn clear(&mut self) {
        (self.start, self.searched) = (0, 0);
        self.buffer.clear();
    }

    /// The next whole line without its end; `None` if more must come.
    pub fn next(&mut self, longest: usize) -> Result<Option<&[u8]>, TooLong> {
        let found = self.buffer[self.searched..]
            .iter()
            .position(|b| *b == b'\n');
        let Some(found) = found else {
            self.searched = self.buffer.len();
            // The last byte may be half of the line's end.
            if self.held() > longest + 1 {
                return Err(TooLong(longest));
            }
            if self.start == self.buffer.len() {
                // A long line's room is given back.
                self.buffer = Vec::new();
                (self.start, self.searched) = (0, 0);
            }
            return Ok(None);
        };
        let end = self.searched + found;
        let line = self.start..end;
        (self.start, self.searched) = (end + 1, end + 1);
        let line = &self.buffer[line];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > longest {
            return Err(TooLong(longest));
        }
        Ok(Some(line))
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What its answer is to carry; without one it gets no answer.
    pub id: Option<Value>,
    /// The method.
    pub method: String,
    /// Its parameters: an array, an object or nothing.
    pub params: Value,
}

/// An error as the protocol has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub code: i64,
    /// For people.
    pub message: String,
}

impl Failure {
    /// An error.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// What one line asks: requests, or what is wrong in their place.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// One.
    One(Result<Request, (Value, Failure)>),
    /// Several at once.
    Batch(Vec<Result<Request, (Value, Failure)>>),
}

/// Reads a line.
pub fn read(line: &[u8], most: usize) -> Call {
    let wrong = |code, message: String| Call::One(Err((Value::Null, Failure::new(code, message))));
    let parts = line.iter().filter(|b| matches!(b, b',' | b'[' | b'{'));
    if parts.take(MAX_PARTS + 1).count() > MAX_PARTS {
        return wrong(
            INVALID_REQUEST,
            format!("a request has at most {MAX_PARTS} parts"),
        );
    }
    match serde_json::from_slice::<Value>(line) {
        Err(e) => wrong(PARSE_ERROR, format!("no JSON: {e}")),
        Ok(Value::Array(list)) if list.is_empty() => {
            wrong(INVALID_REQUEST, "an empty batch".to_owned())
        }
        Ok(Value::Array(list)) if list.len() > most => wrong(
            INVALID_REQUEST,
            format!("a batch has at most {most} requests"),
        ),
        Ok(Value::Array(list)) => Call::Batch(list.into_iter().map(request).collect()),
        Ok(one) => Call::One(request(one)),
    }
}

fn request(value: Value) -> Result<Request, (Value, Failure)> {
    let wrong = |id, message: &str| Err((id, Failure::new(INVALID_REQUEST, message)));
    let Value::Object(mut fields) = value else {
        return wrong(Value::Null, "a request is an object");
    };
    let id = match fields.remove("id") {
        Some(Value::String(text)) if text.len() > MAX_ID => {
            return wrong(Value::Null, "the id is too long");
        }
        Some(Value::Array(_) | Value::Object(_)) => {
            return wrong(Value::Null, "the id is a text or a number");
        }
        id => id,
    };
    let given = || id.clone().unwrap_or(Value::Null);
    let Some(Value::String(method)) = fields.remove("method") else {
        return wrong(given(), "the method is a text");
    };
    match fields.remove("params").unwrap_or(Value::Null) {
        params @ (Value::Array(_) | Value::Object(_) | Value::Null) => {
            let id = id.filter(|id| !id.is_null());
            Ok(Request { id, method, params })
        }
        _ => wrong(given(), "the params are a list or an object"),
    }
}

/// Puts parameters given by name in the order of `names`.
///
/// # Errors
/// There are more than `names`, or one is not among them, unless `lenient`.
pub fn positional(params: Value, names: &[&str], lenient: bool) -> Result<Vec<Value>, Failure> {
    let bad = |message: String| Failure::new(INVALID_PARAMS, message);
    match params {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) if list.len() > names.len() && !lenient => Err(bad(format!(
            "there are {} params, at most {} are taken",
            list.len(),
            names.len()
        ))),
        Value::Array(list) => Ok(list),
        Value::Object(mut by_name) => {
            let mut list = Vec::with_capacity(names.len());
            for name in names {
                list.push(by_name.remove(*name).unwrap_or(Value::Null));
            }
            match by_name.keys().next().filter(|_| !lenient) {
                Some(other) => {
                    let other: String = other.chars().take(40).collect();
                    Err(bad(format!(
                        "there is no param {other:?}, only {}",
                        names.join(", ")
                    )))
                }
                None => Ok(list),
            }
        }
        _ => Err(bad("the params are a list or an object".to_owned())),
    }
}

/// Begins an answer: what follows is its result, JSON, and a brace.
pub fn begin_result(out: &mut Vec<u8>, id: &Value) {
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    put(out, id);
    out.extend_from_slice(b",\"result\":");
}

/// Appends an error.
pub fn put_failure(out: &mut Vec<u8>, id: &Value, failure: &Failure) {
    let error = json!({ "code": failure.code, "message": failure.message });
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    put(out, id);
    out.extend_from_slice(b",\"error\":");
    put(out, &error);
    out.push(b'}');
}

/// Appends a notification as a line.
pub fn put_notification(out: &mut Vec<u8>, method: &str, params: Value) {
    let mut fields = Map::new();
    fields.insert("jsonrpc".to_owned(), "2.0".into());
    fields.insert("method".to_owned(), method.into());
    fields.insert("params".to_owned(), params);
    put(out, &Value::Object(fields));
    out.push(b'\n');
}

fn put(out: &mut Vec<u8>, value: &Value) {
    // Writing a value to memory cannot fail.
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_and_what_is_none() {
        let one = |text: &str| read(text.as_bytes(), 3);
        assert_eq!(
            one(r#"{"id":1,"method":"m","params":[2]}"#),
            Call::One(Ok(Request {
                id: Some(json!(1)),
                method: "m".into(),
                params: json!([2])
            }))
        );
        assert!(matches!(
            one(r#"{"method":"m"}"#),
            Call::One(Ok(Request { id: None, .. }))
        ));
        assert!(matches!(
            one(r#"{"id":null,"method":"m"}"#),
            Call::One(Ok(Request { id: None, .. }))
        ));
        for (text, code) in [
            ("", PARSE_ERROR),
            ("{", PARSE_ERROR),
            ("\u{1}", PARSE_ERROR),
            ("[]", INVALID_REQUEST),
            ("3", INVALID_REQUEST),
            (r#"{"id":1}"#, INVALID_REQUEST),
            (r#"{"id":{},"method":"m"}"#, INVALID_REQUEST),
            (r#"{"id":1,"method":"m","params":3}"#, INVALID_REQUEST),
            ("[1,2,3,4]", INVALID_REQUEST),
        ] {
            match one(text) {
                Call::One(Err((_, failure))) => assert_eq!(failure.code, code, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(one(&deep), Call::One(Err(_))));
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(matches!(one(&deep), Call::One(Err(_))));
        assert!(
            matches!(one(r#"[{"method":"a"},7]"#), Call::Batch(list) if list[0].is_ok() && list[1].is_err())
        );
    }

    #[test]
    fn params_by_name() {
        let names = ["tx_hash", "verbose"];
        let by_name = positional(json!({"verbose": true, "tx_hash": "x"}), &names, false);
        assert_eq!(by_name.unwrap(), [json!("x"), json!(true)]);
        assert!(positional(json!({"other": 1}), &names, false).is_err());
        assert!(positional(json!([1, 2, 3]), &names, false).is_err());
        assert!(positional(json!([1, 2, 3]), &names, true).is_ok());
        assert!(positional(Value::Null, &names, false).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_come(lines in prop::collection::vec("[a-z]{0,20}", 0..20), cuts in prop::collection::vec(1usize..9, 1..30)) {
            let stream: Vec<u8> = lines.iter().flat_map(|l| [l.as_bytes(), b"\r\n"].concat()).collect();
            let mut cutter = Lines::default();
            let (mut out, mut rest, mut cuts) = (Vec::new(), &stream[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let n = cuts.next().unwrap().min(rest.len());
                cutter.push(&rest[..n]);
                rest = &rest[n..];
                while let Some(line) = cutter.next(20).unwrap() {
                    out.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(out, lines);
        }

        #[test]
        fn long_lines_are_refused_before_they_end(len in 22usize..200, with_end: bool) {
            let mut cutter = Lines::default();
            cutter.push(&vec![b'x'; len]);
            if with_end {
                cutter.push(b"\n");
            }
            prop_assert_eq!(cutter.next(20).unwrap_err(), TooLong(20));
        }

        #[test]
        fn any_line_is_answered(line: Vec<u8>) {
            let _ = read(&line, 10);
        }

        #[test]
        fn any_json_is_answered(text in r#"[\[\]{}",:a-z0-9 ]{0,60}"#) {
            let _ = read(text.as_bytes(), 10);
        }
    }
}
