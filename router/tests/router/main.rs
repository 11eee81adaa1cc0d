//! A whole router over loopback: real sockets in front of it, and behind it a node that keeps keys in a map.

mod admin;
mod cluster;
mod controller;
mod controllers;
mod documented;
mod fake_node;
mod http;
mod life;
mod nasty;
mod raw;
