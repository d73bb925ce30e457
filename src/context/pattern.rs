//! Go's `filepath.Match`, one path component at a time.
