use super::*;

fn hex(digits: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(digits.get(at..at + 2).unwrap(), 16).unwrap();
    (0..digits.len()).step_by(2).map(digit).collect()
}

/// RFC 4231, test case 1, and NaCl's own of `crypto_auth`, which is case 2 with a padded key.
#[test]
fn hmacs_are_the_known_ones() {
    let key = [0x0b; 20];
    for (kind, known) in [
        (Type::Hs256, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (
            Type::Hs384,
            "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8\
             b2fa9cb6",
        ),
        (
            Type::Hs512,
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274e\
             aea3f4e4be9d914eeb61f1702e696c203a126854",
        ),
    ] {
        assert_eq!(sign(kind, &key, b"Hi There").unwrap(), hex(known), "{kind}");
    }
    let mut key = [0; 32];
    key[..4].copy_from_slice(b"Jefe");
    let known = hex("164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554");
    assert_eq!(sign(Type::NaclAuth, &key, b"what do ya want for nothing?").unwrap(), known);
    verify(Type::NaclAuth, &key, b"what do ya want for nothing?", &known).unwrap();
    // Neither a part of a tag nor more than one is right.
    for wrong in [&known[..31], &[], &[known.as_slice(), &[0]].concat()] {
        let verified = verify(Type::NaclAuth, &key, b"what do ya want for nothing?", wrong);
        assert_eq!(verified, Err(Fault::NotRight));
    }
}

/// RFC 8032, test 2.
#[test]
fn ed25519_is_the_known_one() {
    let seed = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
    let public_half = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
    let signature = hex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f1\
         1d8c387b2eaeb4302aeeb00d291612bb0c00",
    );
    assert_eq!(public(Type::NaclSign, &seed).unwrap(), Some(public_half.clone()));
    assert_eq!(sign(Type::NaclSign, &seed, &[0x72]).unwrap(), signature);
    verify(Type::NaclSign, &seed, &[0x72], &signature).unwrap();
    assert_eq!(verify(Type::NaclSign, &seed, &[0x73], &signature), Err(Fault::NotRight));
    // libsodium's form of a key has the public half behind.
    let both = [seed.as_slice(), &public_half].concat();
    assert_eq!(*admit(Type::NaclSign, &both).unwrap(), seed);
    let mixed = [seed.as_slice(), &seed].concat();
    assert!(admit(Type::NaclSign, &mixed).unwrap_err().contains("public half"));
}

/// RFC 6979, A.2.5: the key, its public half, and a signature that has to be right.
#[test]
fn es256_knows_a_foreign_signature() {
    let key = hex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721");
    let point = hex(
        "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb67903fe1008b8bc99a41ae9e956\
         28bc64f2f1b20c2d7e9f5177a3c294d4462299",
    );
    let signature = hex(
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716f7cb1c942d657c41d436c7a1b6e2\
         9f65f3e900dbb9aff4064dc4ab2f843acda8",
    );
    assert_eq!(public(Type::Es256, &key).unwrap(), Some(point));
    verify(Type::Es256, &key, b"sample", &signature).unwrap();
    assert_eq!(verify(Type::Es256, &key, b"samples", &signature), Err(Fault::NotRight));
    let own = sign(Type::Es256, &key, b"sample").unwrap();
    assert_eq!(own.len(), 64);
    verify(Type::Es256, &key, b"sample", &own).unwrap();
    // The same key in every form that is taken; numbers that are none of the curve's are not.
    let pair = es256(&key).unwrap();
    let pkcs8 = pair.to_pkcs8v1().unwrap();
    for form in [key.as_slice(), &sec1(&key), pkcs8.as_ref()] {
        assert_eq!(*admit(Type::Es256, form).unwrap(), key);
    }
    let order = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    for wrong in [vec![0; 32], order, vec![0xff; 32], key[1..].to_vec(), vec![0x30; 100]] {
        assert!(admit(Type::Es256, &wrong).unwrap_err().contains("P-256"));
    }
}

/// The vectors of C2SP's XAES-256-GCM, one for each way through the derivation.
#[test]
fn xaes_is_the_known_one() {
    let nonce = *b"ABCDEFGHIJKLMNOPQRSTUVWX";
    let text = b"XAES-256-GCM";
    for (key, associated, known) in [
        (0x01, b"".as_slice(), "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (
            0x03,
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ] {
        let key = [key; 32];
        let known = hex(known);
        assert_eq!(xaes_seal(&key, &nonce, text, associated).unwrap(), known);
        let whole = [nonce.as_slice(), &known].concat();
        assert_eq!(decrypt(Type::Xaes256gcm, &key, &whole, associated).unwrap(), text);
        let other = decrypt(Type::Xaes256gcm, &key, &whole, b"other");
        assert_eq!(other, Err(Fault::NotRight));
    }
}

/// NaCl's own vector of `crypto_secretbox`.
#[test]
fn secretbox_is_the_known_one() {
    let key = hex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
    let whole = hex(
        "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f4868\
         1273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f\
         9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da9983\
         2b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5",
    );
    let known = hex(
        "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c\
         61296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f\
         21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
    );
    assert_eq!(decrypt(Type::NaclSecretbox, &key, &whole, b"").unwrap(), known);
}

/// A key of NaCl's own tests, and a sealed box that libsodium made for it.
#[test]
fn a_sealed_box_of_libsodium_opens() {
    let key = hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    let half = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    let whole = hex(
        "f474940cc185b9a867752e9c0291204f044405fb1831053d56feb0997944085e4330b800592e3db3fa9294fefca3\
         23a11cdb07d96c",
    );
    assert_eq!(public(Type::NaclBox, &key).unwrap(), Some(half));
    assert_eq!(decrypt(Type::NaclBox, &key, &whole, b"").unwrap(), b"perch");
}

#[test]
fn what_a_made_key_does_it_undoes_and_another_key_does_not() {
    for kind in Type::ALL {
        let (key, other) = (generate(kind).unwrap(), generate(kind).unwrap());
        assert_ne!(key, other, "{kind}");
        assert_eq!(*admit(kind, &key).unwrap(), *key, "{kind}");
        for text in [b"".as_slice(), b"some text"] {
            if kind.encrypts() {
                let sealed = encrypt(kind, &key, text, b"").unwrap();
                assert_ne!(sealed, encrypt(kind, &key, text, b"").unwrap(), "{kind}");
                assert_eq!(decrypt(kind, &key, &sealed, b"").unwrap(), text, "{kind}");
                assert_eq!(decrypt(kind, &other, &sealed, b""), Err(Fault::NotRight), "{kind}");
                for at in [0, sealed.len() / 2, sealed.len() - 1] {
                    let mut changed = sealed.clone();
                    changed[at] ^= 1;
                    let opened = decrypt(kind, &key, &changed, b"");
                    assert_eq!(opened, Err(Fault::NotRight), "{kind} {at}");
                }
                for length in 0..sealed.len() {
                    let opened = decrypt(kind, &key, &sealed[..length], b"");
                    assert_eq!(opened, Err(Fault::NotRight), "{kind} {length}");
                }
            } else {
                let signature = sign(kind, &key, text).unwrap();
                verify(kind, &key, text, &signature).unwrap();
                let not_right = Err(Fault::NotRight);
                assert_eq!(verify(kind, &other, text, &signature), not_right, "{kind}");
                assert_eq!(verify(kind, &key, b"another", &signature), not_right, "{kind}");
                assert_eq!(verify(kind, &key, text, &signature[1..]), not_right, "{kind}");
                assert_eq!(verify(kind, &key, text, b""), not_right, "{kind}");
            }
        }
    }
}

#[test]
fn keys_have_their_length() {
    for (kind, good, bad) in [
        (Type::Xaes256gcm, &[32][..], &[0, 16, 31, 33][..]),
        (Type::NaclAuth, &[32], &[0, 31, 33, 64]),
        (Type::NaclBox, &[32], &[0, 31, 33, 64]),
        (Type::NaclSecretbox, &[32], &[0, 31, 33, 64]),
        (Type::NaclSign, &[32], &[0, 31, 33, 63, 65]),
        (Type::Hs256, &[32, 33, 1024], &[0, 31, 1025]),
        (Type::Hs384, &[48, 1024], &[0, 47, 1025]),
        (Type::Hs512, &[64, 1024], &[0, 63, 1025]),
    ] {
        for length in good {
            admit(kind, &vec![7; *length]).unwrap();
        }
        for length in bad {
            let fault = admit(kind, &vec![7; *length]).unwrap_err();
            assert!(fault.contains(&format!("{length} bytes are not")), "{kind} {fault}");
        }
    }
}
