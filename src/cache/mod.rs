//! The cache: keys of named facts, records, and why a step missed.
