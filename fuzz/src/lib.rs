//! What the fuzz targets share.

/// Decodes bytes as a message; what decodes must encode back to the same bytes, since every message has one encoding.
#[macro_export]
macro_rules! round_trip {
    ($message:ty, $bytes:expr) => {
        if let Ok(message) = kv_proto::codec::decode::<$message>($bytes) {
            assert_eq!(kv_proto::codec::encode(&message), $bytes, "{message:?}");
        }
    };
}
