//! Perch oci.
