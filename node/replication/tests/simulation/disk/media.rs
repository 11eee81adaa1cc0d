//! The files of a node, as a kernel and a disk keep them: what was written and not synced is read by the next process, and
//! is lost in part when the power is.

use crate::random::Random;
use kv_proto::ids::Lsn;
use kv_storage::log::{SegmentId, writer};
use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;
const MAX_SPARES: usize = 2;

/// What becomes of the next batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
    #[default]
    Well,
    /// There is no room for another segment.
    Full,
    /// It is written, and its sync fails, or the process ends before.
    Fails,
}

/// The files of a node.
#[derive(Default)]
pub(crate) struct Files {
    /// As a process reads them.
    pub(crate) segments: BTreeMap<SegmentId, Vec<u8>>,
    /// The published checkpoints, by their starts.
    pub(crate) checkpoints: BTreeMap<Lsn, Vec<u8>>,
    pub(super) spares: Vec<Vec<u8>>,
    /// Where something was written that is not synced, and what was there before.
    pub(super) unsynced: Vec<(SegmentId, usize, Vec<u8>)>,
    pub(crate) fate: Fate,
    /// Says that a batch is synced before it is.
    pub(crate) lies: bool,
}

pub(crate) type Shared = Rc<RefCell<Files>>;

impl Files {
    /// Nobody needs this segment any more; the next one may be made of it.
    pub(crate) fn let_go(&mut self, id: SegmentId) {
        self.unsynced.retain(|(segment, _, _)| *segment != id);
        let bytes = self.segments.remove(&id).expect("a segment that is there");
        if self.spares.len() < MAX_SPARES {
            self.spares.push(bytes);
        }
    }

    /// Everything that was written is synced.
    pub(crate) fn sync_all(&mut self) {
        self.unsynced.clear();
    }

    /// The power is lost, and with it any of the sectors that were not synced.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        let how = random.below(5);
        let mut unsynced = std::mem::take(&mut self.unsynced);
        while let Some((id, offset, before)) = unsynced.pop() {
            let bytes = self.segments.get_mut(&id).expect("a segment that is there");
            let sectors = before.len().div_ceil(SECTOR_BYTES);
            let end = random.below(sectors as u64 + 1) as usize;
            for (at, old) in before.chunks(SECTOR_BYTES).enumerate() {
                let lost = match how {
                    0 => true,
                    1 => false,
                    2 => at >= end,
                    3 => at == end,
                    _ => random.one_in(2),
                };
                if lost {
                    let from = offset + at * SECTOR_BYTES;
                    bytes[from..from + old.len()].copy_from_slice(old);
                }
            }
        }
    }
}

/// The way of a stream to its segments.
pub(crate) struct Media {
    files: Shared,
    current: Option<SegmentId>,
}

impl Media {
    pub(crate) fn new(files: &Shared) -> Self {
        Media { files: files.clone(), current: None }
    }
}

impl writer::Media for Media {
    fn create(&mut self, id: SegmentId, bytes: u64) -> io::Result<()> {
        let mut files = self.files.borrow_mut();
        if files.fate == Fate::Full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let made = files.spares.pop().unwrap_or_else(|| vec![0; bytes as usize]);
        assert_eq!(made.len() as u64, bytes, "all segments have one size");
        assert!(files.segments.insert(id, made).is_none(), "{id} is made twice");
        self.current = Some(id);
        Ok(())
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        let (mut files, id) = (self.files.borrow_mut(), self.current.expect("a segment was made"));
        let place = offset as usize..offset as usize + blocks.len();
        let there = &mut files.segments.get_mut(&id).expect("it is there")[place];
        let before = there.to_vec();
        there.copy_from_slice(blocks);
        if files.lies {
            files.unsynced.clear(); // Only the newest batch is not there yet.
        }
        files.unsynced.push((id, offset as usize, before));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut files = self.files.borrow_mut();
        if files.fate == Fate::Fails {
            return Err(io::Error::other("the disk does not take it"));
        }
        if !files.lies {
            let current = self.current;
            files.unsynced.retain(|(id, _, _)| Some(*id) != current);
        }
        Ok(())
    }
}
