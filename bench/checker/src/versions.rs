//! Whether versions grow with real time: a cheap check, for whatever has versions, of operations that are all at hand.

/// What an operation said of the version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// When it was called.
    pub called: u64,
    /// When it returned.
    pub returned: u64,
    /// The version that it saw or made.
    pub version: u64,
    /// Whether the operation made this version.
    pub makes: bool,
}

/// Real time agrees with versions: what is called after a return sees no older version, and makes a newer one.
///
/// # Errors
/// Two operations that do not agree.
pub fn versions_agree(operations: &[Versioned]) -> Result<(), (Versioned, Versioned)> {
    let (mut by_call, mut by_return) = (operations.to_vec(), operations.to_vec());
    by_call.sort_by_key(|o| o.called);
    by_return.sort_by_key(|o| o.returned);
    let mut returned = by_return.into_iter().peekable();
    let mut newest: Option<Versioned> = None;
    for operation in by_call {
        while let Some(before) = returned.next_if(|o| o.returned < operation.called) {
            newest = Some(newest.filter(|n| n.version >= before.version).unwrap_or(before));
        }
        if let Some(newest) = newest
            && (operation.version < newest.version || operation.makes && operation.version == newest.version)
        {
            return Err((newest, operation));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_go_back_are_noticed() {
        let operation = |called, returned, version, makes| Versioned { called, returned, version, makes };
        let write = operation(0, 10, 5, true);
        for (next, agrees) in [
            (operation(11, 12, 5, false), true),
            (operation(11, 12, 4, false), false),
            (operation(9, 12, 4, false), true),
            (operation(11, 12, 5, true), false),
            (operation(11, 12, 6, true), true),
        ] {
            assert_eq!(versions_agree(&[write, next]), if agrees { Ok(()) } else { Err((write, next)) });
        }
    }
}
