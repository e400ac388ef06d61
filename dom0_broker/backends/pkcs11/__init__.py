"""Keys behind PKCS#11 modules: `pkcs11:` URIs as in RFC 7512."""
