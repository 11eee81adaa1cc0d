//! What happens to the files of a node while no process uses them, and what they have, to look at.

use super::{Disk, Harm};
use crate::random::Random;
use kv_storage::log::{
    SegmentId,
    format::{self, BLOCK_BYTES, Content, Found},
};

/// An intact batch of a log.
struct Batch {
    segment: SegmentId,
    place: std::ops::Range<usize>,
    entries: u32,
    has_state: bool,
    only_copies: bool,
}

impl Disk {
    /// Prints what the files have, if somebody wants to look at it.
    pub(super) fn show(&self, why: &str) {
        if std::env::var_os("KV_SIM_DUMP").is_none() {
            return;
        }
        let mut out = String::new();
        for start in self.files.borrow().checkpoints.keys() {
            out += &format!("{}: checkpoint from {start}\n", self.identity.node);
        }
        for batch in self.batches() {
            let (files, at) = (self.files.borrow(), batch.place.start);
            let bytes = &files.segments[&batch.segment][at..];
            let found = format::read_batch(bytes, &self.identity, batch.segment, at as u64).expect("an intact batch");
            let mut body = &*found.body;
            out += &format!("{} at {}\n", batch.segment, batch.place.start);
            while !body.is_empty() {
                let entry = format::read_entry(&mut body).expect("an entry");
                let what = match entry.content {
                    Content::Record { record, copy, .. } => format!("record {} copy {copy}", record.position),
                    Content::State { configuration, last, faulty } => {
                        format!("state epoch {} last {last} faulty {faulty}", configuration.epoch)
                    }
                    other => format!("{other:?}"),
                };
                out += &format!("    committed {}: {what}\n", entry.committed);
            }
        }
        println!("{out}{why}\n");
    }

    /// All batches that are intact, in their order.
    fn batches(&self) -> Vec<Batch> {
        let (files, mut batches) = (self.files.borrow(), Vec::new());
        for (id, bytes) in &files.segments {
            let mut offset = BLOCK_BYTES;
            while offset < bytes.len() {
                let (found, length) = format::find_batch(&bytes[offset..], &self.identity, *id, offset as u64);
                let at = offset;
                offset += length as usize;
                let Found::Batch(batch) = found else { continue };
                let (mut body, mut has_state, mut only_copies) = (&*batch.body, false, true);
                while !body.is_empty() {
                    let entry = format::read_entry(&mut body).expect("an entry");
                    has_state |= matches!(entry.content, Content::State { .. } | Content::Reset { .. });
                    only_copies &= matches!(entry.content, Content::Record { copy: true, .. });
                }
                let place = at..at + format::BATCH_HEADER_BYTES + batch.body.len();
                batches.push(Batch { segment: *id, place, entries: batch.entries, has_state, only_copies });
            }
        }
        batches
    }

    /// Turns a bit around, while no process uses the files; what that may be taken for.
    ///
    /// The last batch is left alone if it has a configuration: without it the log looks as if the replica had never been in
    /// that epoch, and nothing here can tell. So it is where the end must not get lost unnoticed, for nobody can tell either.
    pub(crate) fn damage(&mut self, may_cut: bool, random: &mut Random) -> Result<Harm, String> {
        assert!(self.process.is_none() && self.is_sound(), "it is down, and not harmed yet");
        self.files.borrow_mut().sync_all(); // The kernel has had the time for it.
        let found = self.read_back();
        self.compare(&found)?;
        if random.one_in(12)
            && let Some(mut checkpoint) = self.files.borrow_mut().checkpoints.last_entry()
        {
            let at = random.below(checkpoint.get().len() as u64) as usize;
            checkpoint.get_mut()[at] ^= 1 << random.below(8);
            self.harm = Harm::Damage;
            return Ok(self.harm);
        }
        let batches = self.batches();
        let segments: Vec<_> = self.files.borrow().segments.keys().copied().collect();
        if batches.is_empty() {
            return Ok(Harm::None);
        }
        let segment = segments[random.below(segments.len() as u64) as usize];
        let (segment, at) = match random.below(8) {
            0 => (segment, random.below(BLOCK_BYTES as u64) as usize),
            1 => (segment, random.below(self.segment_bytes) as usize),
            what => {
                let last = [1, 3, batches.len()][what as usize % 3].min(batches.len());
                let batch = &batches[batches.len() - 1 - random.below(last as u64) as usize];
                let bytes = (batch.place.end - batch.place.start) as u64;
                (batch.segment, batch.place.start + random.below(bytes) as usize)
            }
        };
        let hit = batches.iter().position(|b| b.segment == segment && b.place.contains(&at));
        self.harm = match hit {
            None if at < BLOCK_BYTES => Harm::Damage,
            None => Harm::None,
            Some(hit) if batches[hit..].iter().all(|b| b.entries == 0) => Harm::Damage,
            // The log says elsewhere which records there are.
            Some(hit) if batches[hit].only_copies => Harm::Damage,
            Some(hit) if batches[hit + 1..].iter().all(|b| b.entries == 0) => {
                let can = may_cut && !batches[hit].has_state;
                let Some(before) = self.before.take_if(|_| can) else { return Ok(Harm::None) };
                self.uncut = Some(std::mem::replace(&mut self.durable, before));
                Harm::Cut
            }
            Some(_) => Harm::Damage,
        };
        self.show(&format!("a bit of byte {at} of {segment} is turned around: {:?}", self.harm));
        self.files.borrow_mut().segments.get_mut(&segment).expect("it is there")[at] ^= 1 << random.below(8);
        Ok(self.harm)
    }
}
