"""Signed indexes: what a trusted key has not signed is not opened."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from small_index import publish, read_all, reseal

from cbir.core.artifacts import IndexStore, SigningKey, TrustedKeys
from cbir.core.artifacts.seal import Seal
from cbir.core.errors import ArtifactError, ConfigurationError

Keys = tuple[Path, Path]


@pytest.fixture
def make_keys(tmp_path: Path) -> Callable[[str], Keys]:
    """Writes a private and a public key, as openssl does."""

    def make(name: str) -> Keys:
        key = ed25519.Ed25519PrivateKey.generate()
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        private.chmod(0o600)
        public.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return private, public

    return make


def untrusted(store: IndexStore, version: str | None = None) -> None:
    with pytest.raises(ArtifactError) as caught:
        store.open(version)
    assert caught.value.reason == "INDEX_UNTRUSTED"


def test_only_what_a_trusted_key_signed_is_opened(tmp_path: Path, make_keys: Callable[[str], Keys]) -> None:
    private, public = make_keys("mine")
    _, other = make_keys("other")
    index = tmp_path / "index"
    unsigned = publish(IndexStore(index)).name
    trusting = IndexStore(index, TrustedKeys.read([other, public]))
    untrusted(trusting)
    signed = publish(IndexStore(index, key=SigningKey.read(private)), 4).name
    read_all(trusting.open(verify=True))
    read_all(IndexStore(index).open())  # who trusts everybody
    untrusted(trusting, unsigned)
    untrusted(IndexStore(index, TrustedKeys.read([other])))
    # One who can write but has no key: a manifest of his own, the signature of the true one.
    path = index / "versions" / signed
    seal = Seal.parse((path / "seal").read_bytes())
    forged = tmp_path / "forged"
    shutil.copytree(index, forged)
    reseal(IndexStore(forged), lambda manifest: {**manifest, "created": "later"})
    untrusted(IndexStore(forged, TrustedKeys.read([public])))
    lie = Seal.parse((forged / "versions" / signed / "seal").read_bytes())
    (forged / "versions" / signed / "seal").write_text(Seal(signed, lie.digest, seal.signature).text())
    read_all(IndexStore(forged).open())
    untrusted(IndexStore(forged, TrustedKeys.read([public])))


def test_every_flipped_bit_of_a_signature_is_refused(tmp_path: Path, make_keys: Callable[[str], Keys]) -> None:
    private, public = make_keys("mine")
    publish(IndexStore(tmp_path / "index", key=SigningKey.read(private)))
    store = IndexStore(tmp_path / "index", TrustedKeys.read([public]))
    seal = store.path / "versions" / store.current() / "seal"
    data = seal.read_bytes()
    for place in range(len(data)):
        seal.write_bytes(bytes([*data[:place], data[place] ^ 1, *data[place + 1 :]]))
        with pytest.raises(ArtifactError):
            store.open()
    seal.write_bytes(data)
    read_all(store.open())


def test_a_rollback_signs_what_was_published_without_a_key(tmp_path: Path, make_keys: Callable[[str], Keys]) -> None:
    private, public = make_keys("mine")
    first = publish(IndexStore(tmp_path / "index")).name
    publish(IndexStore(tmp_path / "index"), 4)
    signing = IndexStore(tmp_path / "index", key=SigningKey.read(private))
    with signing.lock():
        signing.rollback()
    trusting = IndexStore(tmp_path / "index", TrustedKeys.read([public]))
    assert trusting.open(verify=True).name == first
    # The live version may be signed while it is live, and CURRENT stays as it is.
    with signing.lock():
        signing.activate(first)
    assert trusting.open().name == first


def test_keys_that_are_none_are_refused_in_a_sentence(
    tmp_path: Path, make_keys: Callable[[str], Keys], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_keys("mine")
    wrong = tmp_path / "wrong.pem"
    wrong.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    wrong.chmod(0o600)
    text = tmp_path / "text.pem"
    text.write_text("no key")
    text.chmod(0o600)
    large = tmp_path / "large.pem"
    large.write_bytes(bytes(100_000))
    for act, words in (
        (lambda: SigningKey.read(tmp_path / "none"), "cannot be read"),
        (lambda: SigningKey.read(tmp_path), "cannot be read"),
        (lambda: SigningKey.read(wrong), "of another kind"),
        (lambda: SigningKey.read(text), "no private Ed25519 key"),
        (lambda: SigningKey.read(large), "too large"),
        (lambda: TrustedKeys.read([private]), "no public Ed25519 key"),
        (lambda: TrustedKeys.read([text]), "no public Ed25519 key"),
        (lambda: TrustedKeys.read([tmp_path / "none"]), "cannot be read"),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            act()
        assert caught.value.reason == "KEY_UNUSABLE"
    private.chmod(0o640)
    with pytest.raises(ConfigurationError, match="others than its owner may read"):
        SigningKey.read(private)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigurationError, match=r"ensemble-cbir\[sign\]"):
        TrustedKeys.read([public])
