//! Proof of work of many headers at once: scrypt takes a fifth of a millisecond each.

use std::thread;

use weft_chain::{Chain, Error};

use crate::FullHeader;

/// Fewest headers a thread is started for.
const SHARE: usize = 64;

/// Checks the proof of work of each header, on as many threads as there are processors; what
/// passes may go into a tree by [`weft_chain::headers::HeaderTree::insert_trusted`].
pub fn check_work(chain: &dyn Chain, headers: &[FullHeader]) -> Vec<Result<(), Error>> {
    let check = |h: &FullHeader| chain.check_pow(&h.header, h.auxpow.as_deref());
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(headers.len() / SHARE);
    if threads < 2 {
        return headers.iter().map(check).collect();
    }
    let mut out = vec![Ok(()); headers.len()];
    let share = headers.len().div_ceil(threads);
    thread::scope(|scope| {
        for (headers, out) in headers.chunks(share).zip(out.chunks_mut(share)) {
            scope.spawn(move || {
                for (h, o) in headers.iter().zip(out) {
                    *o = check(h);
                }
            });
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_chain::{Header, chains};

    #[test]
    fn each_header_gets_its_own_answer() {
        let chain = chains::by_name("litecoin-regtest").expect("known");
        let genesis = chain.params().genesis;
        let headers: Vec<FullHeader> = (0..300)
            .map(|nonce| FullHeader {
                header: Header { nonce, ..genesis },
                auxpow: None,
            })
            .collect();
        let want: Vec<_> = headers
            .iter()
            .map(|h| chain.check_pow(&h.header, None))
            .collect();
        assert!(want.iter().any(Result::is_ok) && want.iter().any(Result::is_err));
        assert_eq!(check_work(chain, &headers), want);
        assert_eq!(check_work(chain, &headers[..3]), want[..3]);
        assert_eq!(check_work(chain, &[]), []);
    }
}
