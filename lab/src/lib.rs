//! Network namespaces, veth pairs and HTTP endpoints: what the demo and the end-to-end tests stand on.
