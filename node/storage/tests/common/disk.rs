//! A disk that knows which of its sectors are on it for good.

use super::random::Random;
use kv_proto::ids::{Lsn, PartitionId};
use kv_storage::log::{SegmentId, writer};
use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

pub(crate) const SECTOR_BYTES: usize = 512;

/// A segment's file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segment {
    /// What a loss of power leaves.
    pub(crate) durable: Vec<u8>,
    /// What was written since the last sync.
    pub(crate) unsynced: Vec<(usize, Vec<u8>)>,
}

impl Segment {
    /// What a process reads.
    pub(crate) fn cached(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (offset, written) in &self.unsynced {
            bytes[*offset..offset + written.len()].copy_from_slice(written);
        }
        bytes
    }

    /// What is there after a loss of power: any of the sectors that were not synced.
    fn after_power_loss(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        // Sometimes all but a few, or only a few, so that not everything is torn everywhere.
        let (kind, part) = (random.below(4), random.below(8) + 1);
        for (offset, written) in &self.unsynced {
            for (at, sector) in written.chunks(SECTOR_BYTES).enumerate() {
                let kept = match kind {
                    0 => random.one_in(2),
                    1 => random.one_in(part),
                    2 => !random.one_in(part + 1),
                    _ => (at as u64) < part,
                };
                if kept {
                    bytes[offset + at * SECTOR_BYTES..][..sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes
    }
}

/// A data folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) segments: BTreeMap<SegmentId, Segment>,
    /// Segments that nobody needed any more, with what was in them.
    pub(crate) spares: Vec<Vec<u8>>,
    /// Those that have their names.
    pub(crate) checkpoints: BTreeMap<(PartitionId, Lsn), Vec<u8>>,
}

/// The segments as they are read.
pub(crate) type Image = BTreeMap<SegmentId, Vec<u8>>;

impl Disk {
    pub(crate) fn image_after_power_loss(&self, random: &mut Random) -> Image {
        self.segments.iter().map(|(id, s)| (*id, s.after_power_loss(random))).collect()
    }

    pub(crate) fn image_of_cache(&self) -> Image {
        self.segments.iter().map(|(id, s)| (*id, s.cached())).collect()
    }
}

/// A disk that a test and the writers of its streams share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Disk,
    /// Whether a sync does anything.
    pub(crate) honest: bool,
    /// The disk after each change within a batch.
    pub(crate) moments: Vec<Disk>,
    /// How often it says that it is full before it makes the next segment.
    pub(crate) full: u32,
}

/// What a writer writes to.
#[derive(Clone, Debug)]
pub(crate) struct Media {
    pub(crate) shared: Rc<RefCell<Shared>>,
    current: Option<SegmentId>,
}

impl Media {
    pub(crate) fn new(shared: &Rc<RefCell<Shared>>) -> Self {
        Media { shared: shared.clone(), current: None }
    }
}

impl writer::Media for Media {
    fn create(&mut self, id: SegmentId, bytes: u64) -> io::Result<()> {
        let shared = &mut *self.shared.borrow_mut();
        if shared.full > 0 {
            shared.full -= 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let durable = shared.disk.spares.pop().unwrap_or_else(|| vec![0; bytes as usize]);
        assert_eq!(durable.len() as u64, bytes);
        let before = shared.disk.segments.insert(id, Segment { durable, unsynced: Vec::new() });
        assert!(before.is_none(), "{id} is made twice");
        self.current = Some(id);
        shared.moments.push(shared.disk.clone());
        Ok(())
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        assert!(blocks.as_ptr().align_offset(4096) == 0 && offset.is_multiple_of(4096), "direct I/O");
        let shared = &mut *self.shared.borrow_mut();
        let segment = shared.disk.segments.get_mut(&self.current.expect("a segment")).expect("it is there");
        assert!(blocks.len().is_multiple_of(4096) && offset as usize + blocks.len() <= segment.durable.len());
        segment.unsynced.push((offset as usize, blocks.to_vec()));
        shared.moments.push(shared.disk.clone());
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let shared = &mut *self.shared.borrow_mut();
        let segment = shared.disk.segments.get_mut(&self.current.expect("a segment")).expect("it is there");
        if shared.honest {
            segment.durable = segment.cached();
            segment.unsynced.clear();
        }
        Ok(())
    }
}
