"""The command line of dtp-deploy: parses, calls the library, prints."""
