//! Virtual services and their real servers as the workers use them.
