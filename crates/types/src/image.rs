//! Image references and digests (stub while its owner writes it).
