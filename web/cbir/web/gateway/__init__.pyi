from .listening import Listening as Listening
from .routes import application as application
from .settings import Settings as Settings
