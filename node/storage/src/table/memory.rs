//! What an allocation really takes, by the size classes of mimalloc, which the program allocates with.

/// Allocations over this are counted in pages.
const LARGEST_CLASS_BYTES: usize = 64 * 1024;
const PAGE_BYTES: usize = 4096;

/// The bytes that an allocation of `bytes` takes.
///
/// mimalloc (`mi_bin` in its `page-queue.c`) has classes of one word of 8 bytes and of every two words up to 8 words;
/// from there on four to a power of two.
pub(crate) fn allocated_bytes(bytes: usize) -> u64 {
    let taken = match bytes {
        0 => 0,
        1..=8 => 8,
        9..=64 => bytes.next_multiple_of(16),
        65..=LARGEST_CLASS_BYTES => {
            // Between two powers of two, the upper end included.
            let step = (bytes - 1).next_power_of_two() / 8;
            let step = if (bytes - 1).is_power_of_two() { step * 2 } else { step };
            bytes.next_multiple_of(step)
        }
        _ => bytes.next_multiple_of(PAGE_BYTES),
    };
    taken as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_of_mimalloc() {
        // `MI_PAGE_QUEUES_EMPTY` in mimalloc's `init.c`, in words; odd ones of 3 to 7 are never used.
        let words = [
            1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
            384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192,
        ];
        let mut smallest = 1;
        for class in words.map(|w| w * 8) {
            for bytes in smallest..=class {
                assert_eq!(allocated_bytes(bytes), class as u64, "{bytes}");
            }
            smallest = class + 1;
        }
        assert_eq!([0, 65_536, 65_537, 1 << 20].map(allocated_bytes), [0, 65_536, 69_632, 1 << 20]);
    }
}
