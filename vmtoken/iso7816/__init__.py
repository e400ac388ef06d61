"""Cards as ISO/IEC 7816 describes them: APDUs, status words, TLV, command chaining."""
