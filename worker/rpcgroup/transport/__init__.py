"""How bytes and frames get from one worker to another; knows no message's meaning."""
