//! Connection schedulers: which real server takes the next connection.
