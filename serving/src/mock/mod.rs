//! A deterministic, scriptable backend for tests.
