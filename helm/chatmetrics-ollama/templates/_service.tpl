{{/* The Service of one track. Takes root, track and type. */}}
{{- define "chatmetrics.service" -}}
{{- $name := include "chatmetrics.name" .root -}}
{{- $labels := dict "root" .root "component" "server" "track" .track -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ eq .track "stable" | ternary $name (printf "%s-%s" $name .track) }}
  labels:
    {{- include "chatmetrics.labels" $labels | nindent 4 }}
  {{- with .annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .type }}
  selector:
    {{- include "chatmetrics.selectorLabels" $labels | nindent 4 }}
  ports:
    - {name: http, port: {{ int .root.Values.service.port }}, targetPort: http, appProtocol: http}
{{- end -}}
