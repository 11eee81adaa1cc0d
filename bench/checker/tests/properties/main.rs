//! Properties of the judges: what a register did is always accepted, whatever of it was seen; what it cannot have done is
//! noticed.
//!
//! `turns`: a register that takes turns, and what clients see of it · `histories` · `ledgers`

mod histories;
mod ledgers;
mod turns;
