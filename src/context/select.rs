//! From source arguments to a listing.
