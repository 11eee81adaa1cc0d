//! The load tool as a process, against servers that these tests are themselves: what it measures must be what they did, and what
//! they did wrong must be found.
//!
//! `servers` the servers, honest ones and cheats · `tool` starts the program and reads what it wrote · `cheats` what `--verify` finds ·
//! `truth` figures against known behaviour · `runs` what a run does · `outputs` what it leaves · `workers` several processes ·
//! `refusals` what cannot run · `versus` comparisons · `echo` the server that the tool itself has

mod cheats;
mod echo;
mod outputs;
mod refusals;
mod runs;
mod servers;
mod tool;
mod truth;
mod versus;
mod workers;
