//! The frame decoder, fed in pieces: with bytes as they come, and with sealed messages that are then damaged, since
//! random bytes hardly ever have the right checksum.

#![no_main]

use kv_proto::frame::{Decoder, FrameError, Kind, append_message};
use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};

/// The decoder's limit; messages of a few chunks fit.
const LIMIT: usize = 1024 * 1024;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    messages: Vec<Sent<'a>>,
    /// Where a byte of the stream is changed, and what is added to it.
    damage: Option<(u32, u8)>,
    /// What follows the messages.
    garbage: &'a [u8],
    /// Lengths of the pieces in which the decoder sees the stream; the last holds the rest.
    pieces: Vec<u16>,
}

#[derive(Arbitrary, Debug)]
struct Sent<'a> {
    kind: u8,
    id: u64,
    body: &'a [u8],
    /// Makes the body that many times as long, for messages of several frames.
    repeat: u16,
}

type Message = (Kind, u64, Vec<u8>);

/// All messages up to the first error.
fn decode(stream: &[u8], pieces: &[u16]) -> (Vec<Message>, Option<FrameError>) {
    let mut decoder = Decoder::new(LIMIT);
    let (mut messages, mut start, mut end) = (Vec::new(), 0, 0);
    for length in pieces.iter().map(|n| usize::from(*n)).chain([stream.len()]) {
        end = (end + length).min(stream.len());
        loop {
            let (used, message) = match decoder.decode(&stream[start..end]) {
                Ok((used, message)) => (used, message.map(|m| (m.kind, m.id, m.body.to_vec()))),
                Err(error) => return (messages, Some(error)),
            };
            start += used;
            assert!(decoder.held_bytes() <= LIMIT);
            let Some(message) = message else { break };
            assert!(message.2.len() <= LIMIT);
            messages.push(message);
        }
    }
    (messages, None)
}

fuzz_target!(|input: Input| {
    let (mut stream, mut sent) = (Vec::new(), Vec::new());
    for message in &input.messages {
        let body = message.body.repeat(usize::from(message.repeat).max(1));
        if body.len() > LIMIT {
            return;
        }
        let kind = Kind::ALL[usize::from(message.kind) % Kind::ALL.len()];
        append_message(&mut stream, kind, message.id, |out| out.extend_from_slice(&body));
        sent.push((kind, message.id, body));
    }
    let intact = stream.len();
    stream.extend_from_slice(input.garbage);
    let damaged = match input.damage {
        Some((at, by)) if by != 0 && !stream.is_empty() => {
            let at = at as usize % stream.len();
            stream[at] = stream[at].wrapping_add(by);
            at < intact
        }
        _ => false,
    };
    let (received, error) = decode(&stream, &input.pieces);
    let (at_once, same_error) = decode(&stream, &[]);
    assert_eq!(received, at_once, "the cutting of a stream must not matter");
    assert_eq!(error, same_error, "the cutting of a stream must not matter");
    if damaged {
        assert!(sent.starts_with(&received) && received.len() < sent.len(), "a message that nobody sent");
    } else {
        assert!(received.starts_with(&sent), "a message was lost or changed");
    }
});
