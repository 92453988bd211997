//! Routes and neighbours as the workers read them.
