from .checksum import file_sha256 as file_sha256
from .durability import sync as sync
from .durability import write_durably as write_durably
from .uri import ArchiveMember as ArchiveMember
from .uri import archive_members as archive_members
from .uri import member_uri as member_uri
from .uri import read_uri as read_uri
from .uri import split_uri as split_uri
